"""What is available to this process, from made-up `/proc` and `/sys` trees; and what may be taken of it."""

import pytest

from offload_core.planning import host_budget as hb

GB = 10**9
GIB = 1 << 30


def tree(tmp_path, available_kb=64_000_000, cgroup="", files=None):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable:   {available_kb} kB\n")
    (tmp_path / "proc/self/cgroup").write_text(cgroup)
    for name, text in (files or {}).items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return tmp_path


def test_without_cgroups_it_is_what_the_machine_says(tmp_path):
    assert hb.available_bytes(tree(tmp_path)) == 64_000_000 * 1024


def test_v2_the_tightest_level_of_the_chain_counts(tmp_path):
    files = {
        "a/memory.max": 10 * GB, "a/memory.current": 9 * GB,  # the parent is nearly full
        "a/b/memory.max": 8 * GB, "a/b/memory.current": 2 * GB,
        "a/b/c/memory.max": "max", "a/b/c/memory.current": GB,
    }  # fmt: skip
    assert hb.available_bytes(tree(tmp_path, cgroup="0::/a/b/c\n", files=files)) == 1 * GB


def test_v2_page_cache_that_can_be_dropped_is_not_use(tmp_path):
    files = {"a/memory.max": 10 * GB, "a/memory.current": 9 * GB, "a/memory.stat": f"anon 1\ninactive_file {5 * GB}"}
    assert hb.available_bytes(tree(tmp_path, cgroup="0::/a\n", files=files)) == 6 * GB


def test_v1_with_its_word_for_no_limit(tmp_path):
    files = {
        "memory/memory.limit_in_bytes": 9223372036854771712, "memory/memory.usage_in_bytes": 5 * GB,
        "memory/job/memory.limit_in_bytes": 4 * GB, "memory/job/memory.usage_in_bytes": GB,
    }  # fmt: skip
    cgroup = "5:cpu:/job\n4:blkio,memory:/job\n0::/\n"
    assert hb.available_bytes(tree(tmp_path, cgroup=cgroup, files=files)) == 3 * GB


def test_inside_a_container_the_mounts_top_is_the_own_group(tmp_path):
    files = {"memory.max": 3 * GB, "memory.current": GB}
    root = tree(tmp_path, cgroup="0::/system.slice/docker-1234.scope\n", files=files)
    assert hb.available_bytes(root) == 2 * GB


def test_a_group_over_its_limit_leaves_nothing(tmp_path):
    files = {"memory.max": GB, "memory.current": 2 * GB}
    assert hb.available_bytes(tree(tmp_path, cgroup="0::/\n", files=files)) == 0


def test_nothing_to_read_is_nothing_known(tmp_path):
    assert hb.available_bytes(tmp_path) is None


def test_garbage_is_passed_over(tmp_path):
    files = {"memory.max": "lots", "memory.current": GB}
    assert hb.available_bytes(tree(tmp_path, 1000, "0::/\nnonsense\n", files)) == 1000 * 1024


def test_this_very_machine_has_some():
    found = hb.available_bytes()
    assert found is None or found > 0


@pytest.mark.parametrize("available, reserve", [(100 * GIB, 5 * GIB), (20 * GIB, 2 * GIB), (2 * GIB, 1 * GIB)])
def test_a_reserve_is_left(available, reserve):
    budget = hb.host_budget(available)
    assert budget.copies_bytes == budget.pins_bytes == available - reserve


def test_half_of_it_where_pins_are_dear():
    assert hb.host_budget(100 * GIB, cautious=True).pins_bytes == 95 * GIB // 2
    assert hb.host_budget(100 * GIB, cautious=True).copies_bytes == 95 * GIB


def test_the_apps_ceiling_counts_for_pins_only():
    budget = hb.host_budget(100 * GIB, apps_pin_room_bytes=GIB)
    assert (budget.pins_bytes, budget.copies_bytes) == (GIB, 95 * GIB)
    assert hb.host_budget(100 * GIB, apps_pin_room_bytes=-5).pins_bytes == 0


def test_what_is_asked_wins_within_what_there_is():
    assert hb.host_budget(100 * GIB, asked_pins_bytes=60 * GIB, cautious=True, apps_pin_room_bytes=0).pins_bytes == (
        60 * GIB
    )
    assert hb.host_budget(100 * GIB, asked_pins_bytes=200 * GIB).pins_bytes == 95 * GIB
    assert hb.host_budget(100 * GIB, asked_pins_bytes=0).pins_bytes == 0


def test_wsl_is_told_by_its_kernel(tmp_path):
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text("5.15.90.1-Microsoft-standard-WSL2\n")
    assert hb.is_wsl(tmp_path)
    assert not hb.is_wsl(tmp_path / "elsewhere")
