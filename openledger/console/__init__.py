"""The console: web pages over the calls of the API."""

from openledger.console.app import create_full_app
from openledger.console.router import create_console

__all__ = ["create_console", "create_full_app"]
