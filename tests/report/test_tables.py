from mlprune_jax.report.tables import print_result

LAYERS = [{"heads": [6, 12], "blocks": {"density": 0.51239}}, {"heads": None, "blocks": {"density": 1.0}}]
RESULT = {"model": "[red]runs/x[/red]", "metric": {"accuracy": 0.95}, "layers": LAYERS}


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]


def test_values_then_a_table(capsys):
    print_result(RESULT)
    assert [line.split() for line in lines(capsys.readouterr().out)] == [
        ["model", "[red]runs/x[/red]"],
        ["metric.accuracy", "0.95"],
        [],
        ["layers"],
        ["heads", "blocks.density"],
        ["0", "6", "12", "0.5124"],
        ["1", "-", "1"],
    ]


def test_named_records_are_a_table(capsys):
    print_result({"stages": {"dense": {"loss": 0.5}, "blocks": {"loss": 0.75, "density": {"linear": 0.2}}}})
    assert [line.split() for line in lines(capsys.readouterr().out)] == [
        [],
        ["stages"],
        ["loss", "density.linear"],
        ["dense", "0.5", "-"],
        ["blocks", "0.75", "0.2"],
    ]


def test_a_pipe_gets_every_value_on_its_own_line(capsys):
    print_result({"kept": list(range(1000))})
    assert len(lines(capsys.readouterr().out)) == 1


def test_a_terminal_gets_a_framed_table(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_result(RESULT)
    assert any("─" in line for line in lines(capsys.readouterr().out))


def test_nothing_prints_nothing(capsys):
    print_result({})
    assert capsys.readouterr().out == ""
