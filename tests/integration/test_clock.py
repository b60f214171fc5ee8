"""What the benchmarks read and time of a Ray Data execution, on a real Ray."""

import time

import pyarrow as pa
import pyarrow.parquet as pq
from labelling_peers import read_blocks


def test_every_small_file_is_a_block_so_that_every_actor_of_a_peer_has_work(ray_session, tmp_path):
    for number in range(4):
        pq.write_table(pa.table({"id": [f"r{number}"] * 50}), tmp_path / f"{number}.parquet")
    blocks = read_blocks(str(tmp_path), 4)
    counted = blocks.map_batches(lambda rows: {"rows": [len(rows["id"])]}, batch_size=None)
    assert [row["rows"] for row in counted.take_all()] == [50] * 4


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
