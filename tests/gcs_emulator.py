"""A Google Cloud Storage bucket on this machine, for tests: `from tests.gcs_emulator import bucket`."""

import logging
import os

import pytest


@pytest.fixture(scope="module")
def bucket():
    """Start the emulator, point gcsfs and TensorStore at it, and give `gs://bucket`."""
    server_module = pytest.importorskip(
        "gcp_storage_emulator.server", reason="gcp-storage-emulator is not installed"
    )
    gcsfs = pytest.importorskip("gcsfs", reason="gcsfs is not installed")
    _send_generations()
    server = server_module.create_server("localhost", 0, in_memory=True, default_bucket="bucket")
    server.start()
    host, port = server._api._httpd.server_address[:2]
    address = f"http://{host}:{port}"
    names = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, address))
    gcsfs.GCSFileSystem.clear_instance_cache()
    logging.getLogger("gcsfs").setLevel(logging.ERROR)  # it misses credentials that nobody needs
    yield "gs://bucket"
    gcsfs.GCSFileSystem.clear_instance_cache()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    server.stop()


def _send_generations() -> None:
    """Let a download carry its object's generation, as Google's do and the emulator's do not.

    Without it TensorStore cannot read again what it has read: a save whose arrays are opened one
    after another then fails by chance ("Malformed StorageGeneration").
    """
    from gcp_storage_emulator.handlers import objects

    download = objects.download
    if download.__name__ == "download_with_generation":
        return

    def download_with_generation(request, response, storage, *rest, **options):
        names = request.params["bucket_name"], request.params["object_id"]
        found = storage.objects.get(names[0], {}).get(names[1])
        if found is not None:
            response["x-goog-generation"] = found["generation"]
            response["x-goog-metageneration"] = found["metageneration"]
        return download(request, response, storage, *rest, **options)

    objects.download = download_with_generation
