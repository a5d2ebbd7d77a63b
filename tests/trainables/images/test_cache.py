"""Every node finds its decoded images in one place."""

from pathlib import Path

from trainables.images.cache import image_cache


def test_the_image_cache_is_the_configs_or_ones_own(tmp_path: Path) -> None:
    assert image_cache(str(tmp_path)) == tmp_path
    assert image_cache("~/images") == Path.home() / "images"
    assert image_cache(None).is_absolute()
