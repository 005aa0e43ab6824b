"""Write insightface's .rec files, byte by byte, for tests."""
import struct


def frame(payload):
    """Return a record as dmlc's RecordIOWriter writes it: split at every magic number at a multiple of 4."""
    magic = bytes.fromhex("0a23d7ce")
    cuts = [place for place in range(0, len(payload) - len(payload) % 4, 4) if payload[place:place + 4] == magic]
    begins, ends = [0, *(place + 4 for place in cuts)], [*cuts, len(payload)]
    framed = b""
    for part, (begin, end) in enumerate(zip(begins, ends)):
        kind = 0 if not cuts else 1 if part == 0 else 3 if part == len(cuts) else 2
        framed += magic + struct.pack("<I", kind << 29 | end - begin) + payload[begin:end] + bytes((begin - end) % 4)
    return framed


def record(label, image, number=0):
    """Return a header (IRHeader) and the image. Several labels follow the header, whose flag is their number."""
    if isinstance(label, list):
        return struct.pack("<IfQQ", len(label), 0, number, 0) + struct.pack(f"<{len(label)}f", *label) + image
    return struct.pack("<IfQQ", 0, label, number, 0) + image


def insightface_set(images):
    """Return records as face2rec2 writes them: the images from 1 on, record 0, then one record per identity."""
    return [*((number, record(label, images[number], number)) for number, label in enumerate([0, 0, 0, 1, 1], 1)),
            (0, record([6.0, 8.0], b"")), (6, record([1.0, 4.0], b"", 6)), (7, record([4.0, 6.0], b"", 7))]


def write_set(folder, records):
    """Write [(number, payload)] as train.rec and train.idx into the folder. Return the folder."""
    folder.mkdir(exist_ok=True)
    framed, lines = b"", ""
    for number, payload in records:
        lines += f"{number}\t{len(framed)}\n"
        framed += frame(payload)
    (folder / "train.rec").write_bytes(framed)
    (folder / "train.idx").write_text(lines)
    return folder
