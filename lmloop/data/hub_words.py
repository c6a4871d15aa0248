"""What went wrong with a data set of the hub, in one line that says what helps."""

from __future__ import annotations

from collections.abc import Iterator

from lmloop.data.source import one_line
from lmloop.preset.sources import HubSource

_LOGIN = "`hf auth login`, or the variable HF_TOKEN"


def in_words(error: BaseException, section: HubSource, commit: str | None) -> str:
    """One line. commit: the one that was read, where it is known."""
    from huggingface_hub import constants, get_token

    from lmloop.data.hub_client import HubError

    named = f"the data set {section.dataset}"
    page = f"{constants.ENDPOINT}/datasets/{section.dataset}"
    chain = list(_chain(error))
    kinds = {type(one).__name__ for one in chain}
    said = " ".join(str(one) for one in chain)
    statuses = {getattr(getattr(one, "response", None), "status_code", None) for one in chain}
    fault = next((one for one in chain if isinstance(one, HubError)), None)
    if fault is not None:
        return one_line(fault, 250)
    if "GatedRepoError" in kinds or "is a gated dataset" in said:
        if get_token() is None:
            return f"{named} is gated: accept its conditions at {page}, then log in there with {_LOGIN}"
        return (
            f"{named} is gated, and the account of your token has no access yet: accept its conditions at {page} (some "
            f"authors answer by hand); another account's token goes into {_LOGIN}"
        )
    if 401 in statuses and "Invalid credentials" in said:
        return f"the hub does not accept your token: renew it at {constants.ENDPOINT}/settings/tokens ({_LOGIN})"
    if "RevisionNotFoundError" in kinds or "Revision '" in said:
        if commit is not None and commit != section.revision:
            return (
                f"{named} no longer has the commit {commit[:12]} that this run is pinned to: set `revision` to another one, "
                "or choose another output_dir to start anew"
            )
        return f"{named} has no revision '{section.revision}': correct it or leave it out"
    if kinds & {"RepositoryNotFoundError", "DatasetNotFoundError", "HFValidationError"}:
        return (
            f"there is no data set {section.dataset} on the hub, or it is private: correct its name, or log in with {_LOGIN}"
        )
    if "Dataset scripts are no longer supported" in said:
        return f"{named} is made by a program of its own, and nothing is run from data: choose a copy in Parquet or JSON"
    if kinds & {"DataFilesNotFoundError", "EmptyDatasetError"}:
        return f"{named} has no files that can be read as data ({one_line(error, 120)})"
    if 403 in statuses:
        return f"the hub refuses {named} to your token ({one_line(error, 120)}): correct its permissions ({_LOGIN})"
    return f"{type(error).__name__}: {one_line(error, 200)}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
