"""Upload of an exported model to the hub.

The token is the hub client's own (HF_TOKEN, or a login of `hf auth login`); it is never an argument and never in a
message. Invariant: what exists on the hub as public is not written to unless the user wants a public model.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from swarmgame.errors import BadUsage, Refused, Temporary
from swarmgame.models.hub import unreachable_errors

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def check_push(name: str) -> None:
    """Check what can be checked before a model is written.

    Raises:
        BadUsage: the name is not of the hub's form, there is no token, or the environment forbids requests.
    """
    from huggingface_hub import constants, get_token

    if not NAME.fullmatch(name) or ".." in name or "--" in name:
        raise BadUsage(f"--push {name}: expected a name on the hub, such as organisation/model")
    if constants.HF_HUB_OFFLINE:
        raise BadUsage("--push needs the hub, and HF_HUB_OFFLINE forbids it")
    if get_token() is None:
        raise BadUsage("--push needs a token that may write: set HF_TOKEN, or log in with `hf auth login`")


def push(folder: Path, name: str, *, public: bool, message: str) -> str:
    """Upload a folder as a model, and return its address. The model is created if it does not exist.

    Args:
        name: organisation/model.
        public: create it as public, or accept that it is.
        message: of the commit.

    Raises:
        Refused: the hub refuses the token.
        BadUsage: the model exists and is public, against `public`; or the hub does not accept the files.
        Temporary: the hub did not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi(library_name="swarmgame")
    keep = f"the model is complete in {folder}"
    try:
        created = api.create_repo(name, private=not public, exist_ok=True)
        if not public and not api.model_info(name).private:
            raise BadUsage(f"{name} exists on the hub and is public; push with --public, or to another name. {keep}")
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    except HfHubHTTPError as error:
        code = error.response.status_code
        reason = _first_line(error)
        if code in (401, 403):
            raise Refused(f"the hub does not let this token write to {name} ({code}): {reason}. {keep}") from error
        if code < 500 and code not in (408, 425, 429):
            raise BadUsage(f"the hub does not accept {name} ({code}): {reason}. {keep}") from error
        raise Temporary(f"the hub did not take {name} ({code}): {reason}. {keep}; try again") from error
    except unreachable_errors() as error:
        raise Temporary(f"the hub could not be reached: {_first_line(error)}. {keep}; try again") from error
    return str(created)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
