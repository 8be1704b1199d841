"""The `openledger` command: over HTTP, or handing over to `python -m openledger.<package>`. Light to start."""
