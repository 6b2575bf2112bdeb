from experiments.torture.damaged_files import try_folders


def test_a_damaged_folder_is_read_or_refused() -> None:
    outcomes = try_folders(60, seed=1, limited=False)
    assert set(outcomes) == {"read", "refused"}, outcomes
