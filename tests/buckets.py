"""A bucket of Google Cloud Storage for tests: an emulator in a thread of theirs, at which what reads gs:// asks."""

import contextlib
import logging
import socket
from collections.abc import Iterator
from http import HTTPStatus

import pytest

BUCKET = "bucket"


@contextlib.contextmanager
def serving() -> Iterator[dict[str, str]]:
    """Serve an empty bucket; yields the variables by which a process finds it."""
    from gcp_storage_emulator.exceptions import NotFound
    from gcp_storage_emulator.handlers import objects
    from gcp_storage_emulator.server import create_server

    def generation(request, storage) -> str:
        name = request.params.get("object_id") or request.query.get("name", [""])[0]
        name = name or request.data["meta"]["name"]
        try:
            return storage.get_file_obj(request.params["bucket_name"], name)["generation"]
        except NotFound:
            return "0"

    # The emulator knows no conditions, by which of two writers the first one wins, and a reader sees what is new.
    def written(handle):
        def answer(request, response, storage):
            there = generation(request, storage)
            if request.query.get("ifGenerationMatch", [there]) != [there]:
                response.status = HTTPStatus.PRECONDITION_FAILED
            else:
                handle(request, response, storage)

        return answer

    def read(handle):
        def answer(request, response, storage):
            there = generation(request, storage)
            response["x-goog-generation"] = there
            if request.query.get("ifGenerationNotMatch") == [there]:
                response.status = HTTPStatus.NOT_MODIFIED
            else:
                handle(request, response, storage)

        return answer

    for name in ("gcp_storage_emulator.storage", "gcp_storage_emulator.handlers.objects"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "_multipart_upload", written(objects._multipart_upload))
        patch.setattr(objects, "_media_upload", written(objects._media_upload))
        patch.setattr(objects, "download", read(objects.download))
        with create_server("localhost", port, in_memory=True, default_bucket=BUCKET) as server:
            # A client may hang up before it has read all.
            server._api._httpd.handle_error = lambda *_: None
            host = f"http://localhost:{port}"
            yield {
                "STORAGE_EMULATOR_HOST": host,  # Google's and gcsfs
                "TENSORSTORE_GCS_HTTP_URL": host,
                "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
                "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks Google what kind of bucket it is
            }
