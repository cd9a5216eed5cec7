"""A safetensors repository from the Hugging Face hub, as plain files in a folder of ours."""

from collections.abc import Callable
from pathlib import Path

from cluster.sources import HubSource
from deployments.weights.errors import WeightsError

_WANTED = ("*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "merges.txt", "vocab.txt")
# No pickles and no code: neither is needed, both can run programs. The rest repeats the weights.
_UNWANTED = ("*.bin", "*.pt", "*.pth", "*.py", "*.gguf", "consolidated*", "original/*", "onnx/*")


def hub_download(source: HubSource, into: Path, on_total: Callable[[int], None]) -> None:
    """Downloads one revision into `into`; called again, it goes on where it stopped. Raises WeightsError.

    `on_total` hears the bytes that are still to come before the first of them is written.
    """
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # ours shows the bytes
    wanted = {"local_dir": into, "allow_patterns": list(_WANTED), "ignore_patterns": list(_UNWANTED)}
    try:
        plan = snapshot_download(source.repo, revision=source.revision, dry_run=True, **wanted)
        on_total(sum(file.file_size or 0 for file in plan if file.will_download))
        snapshot_download(source.repo, revision=source.revision, **wanted)
    except WeightsError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the hub: the caller names it
        # "The plan cannot be made" says why only in its cause.
        cause = error.__cause__ if isinstance(error, errors.DryRunError) else None
        raise _hub_failure(source, cause or error) from error


def _hub_failure(source: HubSource, error: BaseException) -> WeightsError:
    """Connection, proxy, endpoint and storage errors come as many types from several libraries."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return WeightsError(
            f"{source}: the authors of {source.repo} ask for consent first",
            fix=f"Accept the terms on https://huggingface.co/{source.repo} and run `hf auth login` first.",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return WeightsError(
            f"{source}: {source.repo} has no revision {source.revision}",
            fix="Name an existing branch, tag or commit in the weights source.",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return WeightsError(
            f"{source}: there is no repository {source.repo}, or it is private",
            fix="Check the name in the weights source; for a private repository run `hf auth login` first.",
        )
    return WeightsError(
        f"{source}: the hub did not give the files",
        fix="Check the network, or set HF_ENDPOINT to a mirror, and run again; finished files are kept.",
        details=[line for line in str(error).splitlines() if line.strip()][-3:] or [repr(error)],
    )
