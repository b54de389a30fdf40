"""Facts about the pixels that come out of image files of every kind."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL", reason="Pillow is not installed")

from PIL import Image

from potstill.pipeline.images.decoding import decoded


def stored(image: Image.Image, kind: str = "PNG", **settings: Any) -> BytesIO:
    stream = BytesIO()
    image.save(stream, kind, **settings)
    stream.seek(0)
    return stream


def gradient(height: int = 12, width: int = 20) -> np.ndarray[Any, Any]:
    """Of RGB pixels, brighter to the right in red and downwards in green."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 250, width)
    pixels[..., 1] = np.linspace(0, 250, height)[:, None]
    return pixels


class TestSizes:
    def test_an_image_of_the_size_asked_for_is_kept_as_it_is(self) -> None:
        pixels = gradient(12, 12)
        assert np.array_equal(decoded(stored(Image.fromarray(pixels)), 12, 12), pixels.transpose(2, 0, 1))

    def test_the_middle_of_the_longer_side_is_kept(self) -> None:
        pixels = gradient(12, 20)
        found = decoded(stored(Image.fromarray(pixels)), 12, 12)
        assert np.array_equal(found, pixels[:, 4:16].transpose(2, 0, 1))

    def test_the_middle_is_cut_out_of_what_was_resized(self) -> None:
        pixels = gradient(24, 40)
        found = decoded(stored(Image.fromarray(pixels)), 12, 8)
        whole = np.asarray(Image.fromarray(pixels).resize((20, 12), Image.Resampling.BILINEAR))
        assert np.abs(found.astype(int) - whole[2:10, 6:14].transpose(2, 0, 1)).max() <= 1

    def test_one_pixel_becomes_a_whole_image(self) -> None:
        assert (decoded(stored(Image.new("RGB", (1, 1), (9, 8, 7))), 4, 4) == np.array([9, 8, 7])[:, None, None]).all()

    def test_a_large_jpeg_is_nearly_what_it_is_without_its_shortcut(self) -> None:
        smooth = Image.fromarray(gradient(30, 30)).resize((600, 600), Image.Resampling.BICUBIC)
        found = decoded(stored(smooth, "JPEG", quality=95), 32, 32)
        whole = np.asarray(smooth.resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        assert np.abs(found.astype(int) - whole).max() <= 4


class TestColours:
    def test_grey_becomes_three_equal_channels(self) -> None:
        found = decoded(stored(Image.new("L", (8, 8), 77)), 8, 8)
        assert found.shape == (3, 8, 8)
        assert (found == 77).all()

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
    def test_transparent_parts_are_white_whatever_colour_hides_there(self, mode: str) -> None:
        image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
        image.paste((30, 30, 30, 255), (0, 0, 8, 4))
        found = decoded(stored(image.convert(mode)), 8, 8)
        assert (found[:, :4] == 30).all()
        assert (found[:, 4:] == 255).all()

    def test_cmyk_becomes_rgb(self) -> None:
        found = decoded(stored(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95), 16, 16)
        assert found[0].min() > 240
        assert found[1:].max() < 15

    def test_of_sixteen_bits_the_upper_eight_are_kept(self) -> None:
        values = (np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).astype(np.uint16)
        found = decoded(stored(Image.fromarray(values)), 8, 8)
        assert np.array_equal(found[0], (values >> 8).astype(np.uint8))

    def test_fractions_are_refused_with_the_mend(self) -> None:
        with pytest.raises(ValueError, match="fractions, whose range is not told; save it with 8 or 16 bits"):
            decoded(stored(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"), 8, 8)


class TestOrientation:
    def test_an_image_is_turned_as_its_exif_data_says(self, tmp_path: Path) -> None:
        pixels = gradient(8, 8)
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by a quarter, clockwise
        file = tmp_path / "turned.png"
        Image.fromarray(pixels).save(file, exif=exif)
        assert np.array_equal(decoded(file, 8, 8), np.rot90(pixels, -1).transpose(2, 0, 1))


class TestDamage:
    def test_half_a_jpeg_is_no_image(self) -> None:
        whole = stored(Image.fromarray(gradient(64, 64)), "JPEG").getvalue()
        with pytest.raises(OSError, match=r"[Tt]runcated"):
            decoded(BytesIO(whole[: len(whole) // 2]), 8, 8)
