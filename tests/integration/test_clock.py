"""What the benchmarks time of a Ray Data execution, on a real Ray."""

import time

import pyarrow.parquet as pq


def test_an_execution_is_held_and_timed_from_its_actors_ready_to_its_last_file(
    ray_session, tmp_path
):
    import ray
    from clock import all_ready

    def read(batch):
        return batch | {"read": [time.monotonic()] * len(batch["id"])}

    class Loads:
        def __init__(self):
            time.sleep(3)
            self.ready = time.monotonic()

        def __call__(self, batch):
            time.sleep(0.2)
            return batch | {"ready": [self.ready] * len(batch["id"])}

    with all_ready() as seconds:
        started = time.perf_counter()
        rows = ray.data.range(4, override_num_blocks=4).map_batches(read)
        rows = rows.map_batches(Loads, concurrency=1, num_cpus=0.5)
        rows.write_parquet(str(tmp_path / "out"))
        whole = time.perf_counter() - started
    times = pq.read_table(tmp_path / "out")
    assert min(times["read"].to_pylist()) > max(times["ready"].to_pylist())
    assert 4 * 0.2 <= seconds() < whole - 3
