"""Uploads a written folder to the hub."""

from __future__ import annotations

from pathlib import Path

from mmtune.core.errors import ResourceError


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
