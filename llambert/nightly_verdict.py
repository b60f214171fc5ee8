"""What becomes of a night that is held back: it is published after all, or discarded."""

import re

from llambert.config import RunConfig
from llambert.errors import UserError
from llambert.lease import Lease
from llambert.ledger import Ledger
from llambert.nightly import DISCARDED, PUBLISHED, folder_name, undecided
from llambert.nightly_model import find_model
from llambert.step import check_writable
from llambert.storage import Folder
from llambert.workdir import Workdir


def publish(config: RunConfig, night: str, model: str | None = None) -> Folder:
    """Publish a night that is held back; returns its folder.

    It is looked for among all models' nights, as the run's model may have been trained anew since.

    Args:
        night: Its number, or `MODEL/NUMBER` with the name of a folder in `workdir/nightly/`.
        model: Folder of the encoder that labelled it.

    Raises:
        UserError: no such night, or not finished, or discarded, or one of each of several models;
            no access to the workdir; another process is at that model's nights.
    """
    home, number = _find(config, "publish", night, model)
    folder = home / folder_name(number)
    with Lease(home):
        if folder.exists(DISCARDED):
            raise UserError(
                f"night {number} is discarded: {folder.uri!r}",
                "`llambert nightly CONFIG` labels its files in a further night",
            )
        folder.write_bytes(PUBLISHED, b"")
    return folder


def discard(config: RunConfig, night: str, model: str | None = None) -> Folder:
    """Discard a night that is held back, so that its files are new again; returns its folder.

    Its labels are kept and never published. Doing it twice, as after a kill, changes nothing.

    Args:
        night: As for `publish`.
        model: As for `publish`.

    Raises:
        UserError: as for `publish`; the night is published.
    """
    home, number = _find(config, "discard", night, model)
    folder = home / folder_name(number)
    with Lease(home):
        if folder.exists(PUBLISHED):
            raise UserError(
                f"night {number} is published: {folder.uri!r}",
                "only a night that is held back can be discarded",
            )
        Ledger(home).forget(number)  # first: a kill in between leaves the night held back
        folder.write_bytes(DISCARDED, b"")
    return folder


def _find(config: RunConfig, option: str, night: str, model: str | None) -> tuple[Folder, int]:
    """The folder of all nights of the model whose night is meant, and the night's number."""
    named = re.fullmatch(r"(?:([^/]+)/)?(\d+)", night)
    if not named:
        raise UserError(
            f"--{option} {night!r} names no night",
            "give its number, such as 7, or MODEL/7 with a folder of nightly/ in the workdir",
        )
    if model and named[1]:
        raise UserError(
            f"--{option} {night!r} and --model {model!r} both name a model",
            f"leave one of them out: --{option} {named[2]}",
        )
    check_writable(Workdir(config.workdir))
    nightly, number = Workdir(config.workdir) / "nightly", int(named[2])
    given = [find_model(config, model).id] if model else [named[1]] if named[1] else None
    nights = {name: nightly / name / folder_name(number) for name in given or nightly.folders()}
    finished = {name: folder for name, folder in nights.items() if folder.manifest()}
    found = [name for name, folder in finished.items() if undecided(folder)] or list(finished)
    if not found:
        raise UserError(
            f"there is no finished night {number} in {nightly.uri!r}",
            "`llambert nightly CONFIG` names the nights that are held back",
        )
    if len(found) > 1:
        raise UserError(
            f"{len(found)} models have a night {number}: {', '.join(found)}",
            f"name the model too, such as --{option} {found[0]}/{number}",
        )
    return nightly / found[0], number
