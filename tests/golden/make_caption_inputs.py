#!/usr/bin/env python3
"""Files that hold pictures, as their own libraries write them: `golden/caption/`.

    python -m pip install datasets==5.2.0 webdataset==1.0.2 pillow
    python tests/golden/make_caption_inputs.py

Hugging Face's datasets writes Parquet (an Image column: groups of bytes and path), WebDataset writes tar shards, and
pyarrow the plainer columns. The pictures are those of golden/llm.
"""

from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import webdataset

HERE = Path(__file__).parent
NAMES = ["ramp", "boxes", "circle", "face", "stripes"]


def main() -> None:
    pictures = [HERE / f"llm/pictures/{name}.png" for name in NAMES]
    contents = [picture.read_bytes() for picture in pictures]
    out = HERE / "caption"
    out.mkdir(exist_ok=True)

    images = [{"bytes": content, "path": f"{name}.png"} for name, content in zip(NAMES, contents)]
    table = datasets.Dataset.from_dict(
        {"label": [0, 1, 2, 3, 4], "image": images},
        features=datasets.Features({"label": datasets.Value("int64"), "image": datasets.Image()}),
    )
    table.to_parquet(out / "datasets.parquet", batch_size=2)

    def write(name: str, columns: dict, **options) -> None:
        pyarrow.parquet.write_table(pyarrow.table(columns), out / name, **options)

    write("bytes.parquet", {"id": NAMES, "jpg": pyarrow.array(contents, pyarrow.binary())}, compression="zstd")
    paths = [f"../llm/pictures/{name}.png" for name in NAMES[:2]] + [None, "http://127.0.0.1/a.png"]
    write("paths.parquet", {"url": pyarrow.array(paths)}, compression="gzip")

    for name in ("shard.tar", "shard.tar.gz"):
        with webdataset.TarWriter(str(out / name)) as shard:
            for key, content in zip(NAMES, contents):
                shard.write({"__key__": f"sample/{key}", "png": content, "json": {"label": key}})


if __name__ == "__main__":
    main()
