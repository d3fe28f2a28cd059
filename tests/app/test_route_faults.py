"""Faults in what the server tells browsers: each makes a test of test_telemetry.py or test_before_the_run.py fail.

The table is in docs/proofs.md.
"""

import re

import pytest

from tests.app import test_before_the_run as before
from tests.app import test_telemetry as told
from tests.support.app_server import HttpError
from tests.support.devkit import paths

pytestmark = [pytest.mark.app, pytest.mark.long]


def save_anywhere(server, browser):
    told.test_names_that_are_no_plain_file_names_are_refused(server, "..")


def too_large(server, browser):
    told.test_bodies_that_are_no_small_objects_are_refused(server, told.LARGE)


def three_loaders(server, browser):
    before.test_what_is_said_before_is_what_the_run_does(server, before.SAME["three loaders"])


def a_path(server, browser):
    before.test_a_name_that_is_not_in_the_apps_list_is_one_clear_error_and_nothing_else(server, "/etc/passwd")


def without_browser(test):
    return lambda server, browser: test(server)


CAUGHT_BY = {
    "any_file_name": save_anywhere,
    "bodies_of_any_size": too_large,
    "saved_over_another": without_browser(told.test_traces_are_saved_in_the_output_folder_and_never_over_each_other),
    "told_to_everybody": told.test_only_a_subscriber_sees_the_run,
    "strangers_are_subscribed": told.test_a_client_that_goes_away_is_dropped,
    "told_without_pause": told.test_only_a_subscriber_sees_the_run,
    "told_although_nothing_happens": told.test_nothing_is_sent_without_an_event_or_a_subscriber,
    "told_of_another_node": told.test_what_became_of_each_auto_is_told_to_the_nodes,
    "every_warning_is_to_do": told.test_what_the_user_can_do_something_about_is_told_once,
    "events_of_what_is_gone": without_browser(
        before.test_the_events_of_the_last_run_are_there_for_a_page_that_comes_later
    ),
    "planned_from_any_path": a_path,
    "planned_without_the_widgets": three_loaders,
}


def test_each_fault_has_its_test():
    source = (paths.SUPPORT / "fault_pack" / "__init__.py").read_text()
    listed = re.search(r"TOLD = \((.*?)\n\)", source, re.S)
    assert sorted(CAUGHT_BY) == sorted(re.findall(r"[a-z_]{3,}", listed[1]))


@pytest.mark.parametrize("fault", CAUGHT_BY)
def test_caught(faulty, fault):
    opened = []

    def browser(name):
        opened.append(told.Browser(faulty, f"{fault}-{name}"))
        return opened[-1]

    faulty.post("/fault", {"name": fault})
    try:
        with pytest.raises((AssertionError, pytest.fail.Exception, HttpError)):
            CAUGHT_BY[fault](faulty, browser)
    finally:
        faulty.post("/fault", {"name": ""})
        for one in opened:
            one.close()
