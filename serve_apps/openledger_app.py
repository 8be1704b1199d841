"""API, console and engine as one Ray Serve application, configured by the environment.

    OPENLEDGER_WORKDIR=/var/lib/openledger serve run serve_apps.openledger_app:app

`serve deploy serve_apps/openledger.yaml` takes the same two settings from its file instead.
"""

import os

from openledger.console.deployment import GatewayArguments, build
from openledger.core.errors import InvalidInput

if not os.environ.get("OPENLEDGER_WORKDIR"):
    raise InvalidInput(
        "OPENLEDGER_WORKDIR is not set",
        code="missing_setting",
        param="OPENLEDGER_WORKDIR",
        fix="set it to the working folder of an installation, for example one that `openledger quickstart` made",
    )

app = build(
    GatewayArguments(
        workdir=os.path.abspath(os.environ["OPENLEDGER_WORKDIR"]),
        base_model=os.environ.get("OPENLEDGER_BASE_MODEL", ""),
    )
)
