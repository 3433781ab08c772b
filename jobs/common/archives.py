"""What zip archives may not do: unpack to more than they are."""

import zipfile


def expansion_refusal(archive: zipfile.ZipFile, size: int) -> str | None:
    """Why a zip archive of `size` bytes is not unpacked.
    Keras and NumPy compress nothing, so what is in one has at most its size.

    What an archive says of a compressed member's size binds nobody: Python unpacks up to 2 GB before it looks.
    """
    members = archive.infolist()
    if packed := next((each.filename for each in members if each.compress_type != zipfile.ZIP_STORED), None):
        return f"holds {packed} compressed, which may unpack to many times its size"
    return "holds more than its own size" if sum(each.file_size for each in members) > size else None
