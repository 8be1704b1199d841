"""The HTTP API in OpenAI's and Stripe's dialect: one router per resource over `platform.service.Service`."""

from openledger.api.app import create_app

__all__ = ["create_app"]
