"""Each test over the manifests runs twice: on the files, and on what kustomize makes of them."""

import pytest

from tests.deploy.manifests import PRODUCTION, Manifests, rendered, written


@pytest.fixture(params=["written", "rendered"])
def manifests(request: pytest.FixtureRequest) -> Manifests:
    return written() if request.param == "written" else rendered(PRODUCTION)
