"""What pyproject.toml cannot say: the project's address, in one place."""

from setuptools import setup

REPOSITORY = ""  # the address of the repository, without a slash at the end; empty if there is none

setup(
    project_urls={
        "Source": REPOSITORY,
        "Issues": f"{REPOSITORY}/issues",
        "Changelog": f"{REPOSITORY}/blob/main/CHANGELOG.md",
    }
    if REPOSITORY
    else {}
)
