"""Pictures of every kind qbridge reads, and what the reference makes of them.

    ~/.cache/qbridge/train-venv/bin/python tests/golden/make_pixels.py

Writes tests/golden/pixels/: the pictures, what is expected of them, and pixels.json. The reference
is Pillow 13.0.0 (libjpeg-turbo 3.2.0) and transformers 5.23.0's BlipImageProcessorPil
(models/blip/image_processing_pil_blip.py). A picture is turned upright with ImageOps.exif_transpose,
as transformers' load_image does, then goes through the processor's own convert_to_rgb (which
composites transparency on white) and resize (Image.resize((S, S), BICUBIC)). NAME@S.png holds the
S x S result before rescaling; for a few, NAME@S.f32 holds the processor's whole output: 3 x S x S
little-endian f32.

Two deviations, where Pillow is wrong and the reference is made by hand:
- It turns 16-bit grey to 8 bits by clipping at 255, so that all but the darkest 0.4 % is white. The
  reference is the same samples shifted right by 8, which is what Pillow does with 16-bit colour.
- It compares the transparent value of a 1, 2 or 4-bit grey PNG with samples that it has already
  scaled to 8 bits. The reference compares it with the samples, as the PNG specification says.
"""

import io
import json
import math
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL
import transformers
from PIL import Image, ImageDraw, ImageOps
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

OUT = Path(__file__).parent / "pixels"
SMALL = 64  # every picture at this S
FULL = 224  # some also at the size the models read


def scene(width, height, seed, noise=6.0):
    """A picture with gradients, waves, hard edges, text and grain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(float)
    planes = [x / width * 255, y / height * 255, 128 + 127 * np.sin(x / 7 + y / 11)]
    array = np.stack(planes, -1) + rng.normal(0, noise, (height, width, 3))
    picture = Image.fromarray(np.clip(array, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(10):
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        left, top = int(rng.integers(0, width)), int(rng.integers(0, height))
        draw.ellipse((left, top, left + width // 4, top + height // 5), fill=colour)
        draw.text((left, top), "qbridge 42", fill=tuple(255 - value for value in colour))
    return picture


def alpha(width, height):
    """An alpha channel with every value from clear to opaque."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    waves = 127.5 + 180 * np.sin(x / 9) * np.cos(y / 13)
    return Image.fromarray(np.clip(waves, 0, 255).astype(np.uint8))


def samples16(width, height, seed, channels):
    """16-bit samples whose low bytes matter."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(float)
    planes = [x / width, y / height, 0.5 + 0.5 * np.sin(x / 6 + y / 8), 0.5 + 0.5 * np.cos(x / 9)]
    array = np.stack(planes[:channels], -1) * 65535 + rng.normal(0, 900, (height, width, channels))
    return np.clip(array, 0, 65535).astype(np.uint16)


def png(samples, bits, colour, interlaced=False, extra=()):
    """A PNG of raw samples [height, width, channels]: for the kinds that Pillow cannot write."""

    def rows(part):
        lines = []
        for row in part:
            if bits == 16:
                packed = row.astype(">u2").tobytes()
            elif bits == 8:
                packed = row.astype(np.uint8).tobytes()
            else:
                values = row.reshape(-1).astype(np.uint8)
                values = np.unpackbits(values[:, None], axis=1)[:, 8 - bits :]
                packed = np.packbits(values.reshape(-1)).tobytes()
            lines.append(b"\0" + packed)
        return b"".join(lines)

    def chunk(kind, data):
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    height, width, _ = samples.shape
    if interlaced:
        adam7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
        parts = [samples[top::down, left::right] for top, left, down, right in adam7]
        data = b"".join(rows(part) for part in parts if part.size)
    else:
        data = rows(samples)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced))
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(data, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def saved(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def pictures():
    """(file name, bytes, sizes, the right picture where Pillow reads another)."""
    small, both = (SMALL,), (SMALL, FULL)

    # Shapes, as PNG: where the passes swap, and the edges of the filter.
    yield "photo.png", saved(scene(320, 240, 1, 2), "PNG", optimize=True), both, None
    yield "identity.png", saved(scene(FULL, FULL, 2, 0), "PNG", optimize=True), both, None
    yield "tall.png", saved(scene(150, 450, 3, 0), "PNG", optimize=True), (SMALL, 182), None
    yield "wide.png", saved(scene(450, 150, 4, 0), "PNG", optimize=True), (SMALL, 182), None
    yield "thin.png", saved(scene(17, 1000, 5), "PNG", optimize=True), both, None
    yield "flat.png", saved(scene(1000, 17, 6), "PNG", optimize=True), small, None
    yield "line.png", saved(scene(3, 2000, 7), "PNG", optimize=True), both, None
    yield "dot.png", saved(Image.new("RGB", (1, 1), (200, 3, 77)), "PNG"), both, None
    yield "enlarged.png", saved(scene(40, 30, 8), "PNG", optimize=True), both, None
    yield "last-row-first.png", saved(scene(100, 136, 9), "PNG", optimize=True), small, None
    yield "first-column-first.png", saved(scene(100, 137, 9), "PNG", optimize=True), small, None
    yield "one-more-row.png", saved(scene(63, 65, 10), "PNG", optimize=True), small, None
    yield "same-height.png", saved(scene(90, SMALL, 11), "PNG", optimize=True), small, None
    yield "same-width.png", saved(scene(SMALL, 90, 12), "PNG", optimize=True), small, None

    # PNG: every colour type and depth.
    base = scene(90, 70, 20, 3)
    grey = np.asarray(base.convert("L"))[..., None]
    yield "grey.png", saved(base.convert("L"), "PNG"), small, None
    for bits in (1, 2, 4):
        yield f"grey-{bits}-bit.png", png(grey >> (8 - bits), bits, 0), small, None
    for bits in (1, 2, 4, 8):
        yield f"palette-{bits}-bit.png", saved(base.quantize(2**bits), "PNG", bits=bits), small, None
    palette = base.quantize(16)
    yield "palette-transparent.png", saved(palette, "PNG", transparency=bytes(range(0, 256, 16))), small, None
    yield "grey-transparent.png", png(grey // 32 * 32, 8, 0, extra=[(b"tRNS", b"\0\x60")]), small, None
    clear = Image.fromarray(np.where(grey[..., 0] >> 4 == 5, 0, 255).astype(np.uint8))
    known = Image.merge("LA", (Image.fromarray((grey[..., 0] >> 4) * 17), clear))
    yield "grey-4-bit-transparent.png", png(grey >> 4, 4, 0, extra=[(b"tRNS", b"\0\5")]), small, known
    colours = np.asarray(base.quantize(8).convert("RGB"))
    clear = b"".join(struct.pack(">H", int(value)) for value in colours[0, 0])
    yield "rgb-transparent.png", png(colours, 8, 2, extra=[(b"tRNS", clear)]), small, None
    grey_alpha = Image.merge("LA", (base.convert("L"), alpha(90, 70)))
    yield "grey-alpha.png", saved(grey_alpha, "PNG"), small, None
    rgba = base.copy()
    rgba.putalpha(alpha(90, 70))
    yield "rgba.png", saved(rgba, "PNG"), small, None
    yield "interlaced.png", png(np.asarray(base), 8, 2, interlaced=True), small, None
    yield "rgb-16-bit.png", png(samples16(60, 44, 21, 3), 16, 2), small, None
    yield "rgba-16-bit.png", png(samples16(60, 44, 22, 4), 16, 6), small, None
    yield "grey-alpha-16-bit.png", png(samples16(60, 44, 23, 2), 16, 4), small, None
    deep = samples16(60, 44, 24, 1)
    yield "grey-16-bit.png", png(deep, 16, 0), small, Image.fromarray((deep[..., 0] >> 8).astype(np.uint8))
    yield "turned.png", saved(scene(60, 40, 25), "PNG", exif=exif(6)), small, None

    # JPEG: samplings, colour spaces, EXIF.
    photo = scene(171, 117, 30)
    for sampling, number in (("444", 0), ("422", 1), ("420", 2)):
        yield f"{sampling}.jpg", saved(photo, "JPEG", quality=88, subsampling=number), both, None
    yield "enlarged.jpg", saved(scene(41, 31, 31), "JPEG", quality=90), both, None
    yield "identity.jpg", saved(scene(FULL, FULL, 32), "JPEG", quality=80), (FULL,), None
    yield "coarse.jpg", saved(photo, "JPEG", quality=20), small, None
    yield "finest.jpg", saved(scene(80, 60, 33), "JPEG", quality=100), small, None
    yield "progressive.jpg", saved(photo, "JPEG", quality=85, progressive=True), small, None
    yield "restarts.jpg", saved(photo, "JPEG", quality=85, restart_marker_rows=1), small, None
    yield "grey.jpg", saved(photo.convert("L"), "JPEG", quality=85), small, None
    yield "rgb.jpg", saved(scene(80, 60, 34), "JPEG", quality=90, keep_rgb=True), small, None
    inks = Image.merge("CMYK", (*photo.split(), photo.convert("L").point(lambda value: value // 2)))
    cmyk = saved(inks, "JPEG", quality=88)
    yield "cmyk.jpg", cmyk, small, None
    # The last byte of the Adobe segment names the transform: 0 is CMYK, 2 is YCCK.
    transform = cmyk.index(b"Adobe") + 11
    yield "ycck.jpg", cmyk[:transform] + b"\2" + cmyk[transform + 1 :], small, None
    yield "dot.jpg", saved(Image.new("RGB", (1, 1), (9, 200, 90)), "JPEG"), small, None
    for orientation in range(1, 9):
        turned = saved(scene(60, 40, 35), "JPEG", quality=70, exif=exif(orientation))
        yield f"turned-{orientation}.jpg", turned, small, None
    for name, tags in (
        ("bad-exif-cut.jpg", exif(6)[:17]),
        ("bad-exif-value.jpg", exif(99)),
        ("bad-exif-noise.jpg", b"Exif\0\0" + bytes(range(200))),
    ):
        yield name, saved(scene(60, 40, 36), "JPEG", quality=70, exif=tags), small, None
    junk = saved(scene(60, 40, 37), "JPEG", quality=70) + bytes(range(256)) * 4
    yield "trailing-junk.jpg", junk, small, None

    # WebP, GIF.
    yield "lossy.webp", saved(photo, "WEBP", quality=80), both, None
    yield "lossless.webp", saved(base, "WEBP", lossless=True), small, None
    yield "rgba.webp", saved(rgba, "WEBP", quality=80), small, None
    yield "turned.webp", saved(scene(60, 40, 40), "WEBP", quality=80, exif=exif(8)), small, None
    frames = [scene(60, 40, seed) for seed in (41, 42, 43)]
    animated = {"save_all": True, "append_images": frames[1:], "duration": 100}
    yield "animated.webp", saved(frames[0], "WEBP", quality=70, **animated), small, None
    yield "plain.gif", saved(base.quantize(64), "GIF"), small, None
    yield "animated.gif", saved(frames[0].quantize(32), "GIF", **animated), small, None
    holes = base.quantize(31)
    yield "transparent.gif", saved(holes, "GIF", transparency=holes.getpixel((0, 0))), small, None

    # BMP, TIFF.
    yield "rgb.bmp", saved(scene(61, 40, 50), "BMP"), small, None
    yield "palette.bmp", saved(base.quantize(200), "BMP"), small, None
    yield "grey.bmp", saved(base.convert("L"), "BMP"), small, None
    yield "black-and-white.bmp", saved(base.convert("1"), "BMP"), small, None
    yield "rgbx.bmp", saved(rgba, "BMP"), small, None
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"):
        name = f"{compression.removeprefix('tiff_').replace('_', '-')}.tif"
        yield name, saved(scene(61, 40, 51), "TIFF", compression=compression), small, None
    yield "grey.tif", saved(base.convert("L"), "TIFF"), small, None
    yield "black-and-white.tif", saved(base.convert("1"), "TIFF"), small, None
    yield "fax.tif", saved(base.convert("1"), "TIFF", compression="group4"), small, None
    yield "palette.tif", saved(base.quantize(100), "TIFF"), small, None
    yield "rgba.tif", saved(rgba, "TIFF", compression="tiff_lzw"), small, None
    yield "rgbx.tif", saved(Image.merge("RGBX", rgba.split()), "TIFF", compression="tiff_lzw"), small, None
    # Tag 338, ExtraSamples, of one SHORT: 2 is alpha, 1 is alpha that the colours are multiplied by.
    plain = saved(Image.merge("RGBA", rgba.convert("RGBa").split()), "TIFF")
    extra = plain.index(struct.pack("<HHI", 338, 3, 1)) + 8
    yield "rgba-multiplied.tif", plain[:extra] + b"\1" + plain[extra + 1 :], small, None
    yield "grey-alpha.tif", saved(grey_alpha, "TIFF"), small, None
    yield "cmyk.tif", saved(inks.resize((61, 40)), "TIFF"), small, None
    yield "grey-16-bit.tif", saved(Image.fromarray(deep[..., 0]), "TIFF"), small, Image.fromarray((deep[..., 0] >> 8).astype(np.uint8))
    yield "turned.tif", saved(scene(61, 40, 52), "TIFF", tiffinfo={0x0112: 7}), small, None


def main():
    assert (PIL.__version__, transformers.__version__) == ("13.0.0", "5.23.0")
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    entries = []
    for name, data, sizes, known in pictures():
        (OUT / name).write_bytes(data)
        if known is None:
            picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        else:
            picture = known
        processor = BlipImageProcessorPil()
        rgb = processor.convert_to_rgb(picture)
        for size in sizes:
            sides = {"height": size, "width": size}
            resized = processor(
                picture, size=sides, do_rescale=False, do_normalize=False, return_tensors="np"
            )["pixel_values"][0]
            assert (resized == np.round(resized)).all()
            resized = resized.astype(np.uint8).transpose(1, 2, 0)
            assert (resized == np.asarray(Image.fromarray(rgb).resize((size, size), Image.BICUBIC))).all()
            saved_pixels = Image.fromarray(resized)
            saved_pixels.save(OUT / f"{name}@{size}.png", optimize=True)
            if name in ("photo.png", "420.jpg") and size == SMALL:
                whole = processor(picture, size=sides, return_tensors="np")["pixel_values"][0]
                assert whole.dtype == np.float32
                (OUT / f"{name}@{size}.f32").write_bytes(whole.astype("<f4").tobytes())
        height, width, _ = rgb.shape
        entries.append({"name": name, "width": width, "height": height, "sizes": list(sizes)})
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    (OUT / "pixels.json").write_text(f"[\n{lines}\n]\n")
    total = sum(path.stat().st_size for path in OUT.iterdir())
    print(f"{len(entries)} pictures, {math.ceil(total / 1024)} KiB with what is expected of them")


if __name__ == "__main__":
    main()
