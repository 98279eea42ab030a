"""Uploads a written folder to the hub."""

from __future__ import annotations

from pathlib import Path

from mmtune.core.errors import ResourceError, UsageError


def check_repository(repository: str) -> None:
    """Notice a name that the hub would refuse before the work.

    Raises:
        UsageError: It is no ``ORG/NAME``.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        message = f"'{repository}' is no name on the hub: {error}"
        raise UsageError(message, where="--push", fix="--push ORG/NAME") from error


def push_folder(folder: Path, repository: str) -> str:
    """Upload a folder as the model ``ORG/NAME`` and return its address.

    Raises:
        ResourceError: The hub is out of reach or refuses; the folder stays as it is.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        address = api.create_repo(repository, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repository, commit_message="Add a checkpoint converted by mmtune")
    except Exception as error:
        detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ResourceError(
            f"The folder was written, but not uploaded: {detail}",
            where=str(folder),
            fix=f"log in and repeat: hf upload {repository} {folder}",
        ) from error
    return str(address)
