"""Which component is expected to run next, told as prompts: e: encoder, d: diffusion model, v: autoencoder."""

from offload_core.planning.succession import KEPT, Succession


def expected(succession: Succession, uses: str) -> list[str]:
    """What is expected after each pass: "-" for the same component or nothing known. Uses are separated by spaces."""
    answers = []
    for use in uses.split():
        succession.use_begins(ord(use[0]))
        after = [succession.pass_begins(ord(component)) for component in use]
        answers.append("".join("-" if component is None else chr(component) for component in after))
    return answers


def test_nothing_is_known_of_the_first_prompt():
    assert expected(Succession(), "e e ddd v") == ["-", "-", "---", "-"]


def test_a_prompt_is_expected_to_be_like_the_one_before():
    succession = Succession()
    expected(succession, "e e ddd v e")
    assert expected(succession, "e ddd v e e ddd v") == ["d", "--v", "e", "-", "d", "--v", "e"]


def test_two_experts_take_turns_at_their_steps():
    succession = Succession()
    expected(succession, "e hhhh llll v e hhhh llll v")
    assert expected(succession, "e hhhh llll v") == ["h", "---l", "---v", "e"]


def test_two_samplers_of_one_model_are_told_apart():
    succession = Succession()
    expected(succession, "e ddd dd v e ddd dd v")
    assert expected(succession, "e ddd dd v") == ["d", "---", "-v", "e"]


def test_a_prompt_without_a_new_text():
    """Its encoder's output is cached. After two of them in a row the next one is expected to be like that, too."""
    succession = Succession()
    expected(succession, "e dd v dd v dd v")
    assert expected(succession, "dd v") == ["-v", "d"]
    assert expected(succession, "e dd v") == ["d", "-v", "d"], "one that differs changes nothing"
    assert expected(succession, "e dd v") == ["d", "-v", "e"]


def test_a_controlnet_runs_before_each_pass():
    succession = Succession()
    expected(succession, "e c dcdcdcd v e c dcdcdcd v")
    assert expected(succession, "e c dcdcdcd") == ["c", "d", "cdcdcdc"]


def test_a_cancelled_prompt_changes_nothing():
    succession = Succession()
    expected(succession, "e ddddd v e ddddd v e dd")
    assert expected(succession, "e ddddd v") == ["d", "----v", "e"]


def test_more_steps_than_before_are_learned_in_two_prompts():
    succession = Succession()
    expected(succession, "e dd v e dd v e")
    answers = [expected(succession, "dddd v e") for _ in range(3)]
    assert answers[0][0] == answers[1][0] == "-v--", "the guess is wrong once a prompt"
    assert answers[2][0] == "---v"


def test_what_is_kept_is_bounded():
    succession = Succession()
    for component in range(5 * KEPT):
        succession.pass_begins(component)
    assert len(succession._forecasts) == KEPT
