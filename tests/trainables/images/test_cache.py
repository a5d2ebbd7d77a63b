"""Every node finds its decoded images in one place."""

from pathlib import Path

import pytest

from trainables.errors import InputError
from trainables.images.cache import image_cache, private_folder


def test_the_image_cache_is_the_configs_or_ones_own(tmp_path: Path) -> None:
    assert image_cache(str(tmp_path)) == tmp_path
    assert image_cache("~/images") == Path.home() / "images"
    assert image_cache(None).is_absolute()


def test_ones_own_folder_is_made_for_oneself_alone(tmp_path: Path) -> None:
    folder = private_folder(tmp_path)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert private_folder(tmp_path) == folder


def test_a_folder_that_others_may_have_filled_is_refused(tmp_path: Path) -> None:
    folder = private_folder(tmp_path)
    folder.chmod(0o770)
    with pytest.raises(InputError, match="may hold what others put there"):
        private_folder(tmp_path)
    folder.rmdir()
    (tmp_path / "theirs").mkdir()
    folder.symlink_to(tmp_path / "theirs")
    with pytest.raises(InputError, match=r"it is a link.*set storage\.cache"):
        private_folder(tmp_path)
    folder.unlink()
    folder.write_text("in the way")
    with pytest.raises(InputError, match="cannot be made"):
        private_folder(tmp_path)
