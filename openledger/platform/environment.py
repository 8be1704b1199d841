"""What every process of the cluster inherits. To be prepared before `ray` is imported, which reads it once.

Ray turns token authentication on for local clusters, and keeps its token in the user's home; ours lies in the working
folder, so that nothing outside it is written.
"""

import os
import secrets

from openledger.core.files import write_secret
from openledger.platform.workdir import Workdir


def prepare_environment(workdir: Workdir) -> str:
    """Set what isn't set already: authentication, one thread for each process, quiet logs. The token."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    return _use_token(workdir)


def _use_token(workdir: Workdir) -> str:
    """Set Ray's authentication mode explicitly, with the token of this working folder unless the user brings one.

    A cluster that RAY_ADDRESS names has its own token, and Ray's ways to find it.
    """
    if os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return os.environ.get("RAY_AUTH_TOKEN", "")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in os.environ:
        path = workdir.keys / "ray_token"
        if not path.exists():
            write_secret(path, secrets.token_hex(32).encode())
        os.environ["RAY_AUTH_TOKEN"] = path.read_text().strip()
    return os.environ.get("RAY_AUTH_TOKEN", "")
