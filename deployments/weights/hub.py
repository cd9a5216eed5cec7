"""A safetensors repository from the Hugging Face hub, as plain files in a folder of ours."""

from pathlib import Path

from cluster.sources import HubSource
from deployments.weights.errors import WeightsError

_WANTED = ("*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "merges.txt", "vocab.txt")
# No pickles and no code: neither is needed, both can run programs. The folders repeat the weights in other formats.
_UNWANTED = ("*.bin", "*.pt", "*.pth", "*.py", "*.gguf", "consolidated*", "original/*", "onnx/*")


def hub_download(source: HubSource, into: Path) -> None:
    """Downloads one revision into `into`; run again, it goes on where it stopped. Raises WeightsError."""
    import httpx
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # ours shows the bytes
    try:
        snapshot_download(
            source.repo,
            revision=source.revision,
            local_dir=into,
            allow_patterns=list(_WANTED),
            ignore_patterns=list(_UNWANTED),
        )
    except errors.GatedRepoError as error:
        raise WeightsError(
            f"{source}: the authors of {source.repo} ask for consent first",
            fix=f"Accept the terms on https://huggingface.co/{source.repo}, run `hf auth login` and start again.",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(
            f"{source}: {source.repo} has no revision {source.revision}",
            fix="Name an existing branch, tag or commit in the weights source.",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            f"{source}: there is no repository {source.repo}, or it is private",
            fix="Check the name in the weights source; for a private repository run `hf auth login` first.",
        ) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise _unreachable(source, error) from error
    except httpx.HTTPError as error:
        raise _unreachable(source, error) from error
    except OSError as error:
        if error.errno is not None:
            raise  # the disk, not the hub: the caller names it
        raise _unreachable(source, error) from error


def _unreachable(source: HubSource, error: Exception) -> WeightsError:
    last_line = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return WeightsError(
        f"{source}: the hub did not answer: {last_line}",
        fix="Check the network, or set HF_ENDPOINT to a mirror, and run again; finished downloads are kept.",
    )
