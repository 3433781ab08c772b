"""Has a run's data shown, once, before it trains."""

from cluster.core.storage import Store
from jobs.common.config import Config
from jobs.common.data.dataset import Dataset
from jobs.common.data.prepared import Say
from jobs.common.training.job import Job


def show_data(job: Job, config: Config, store: Store, dataset: Dataset, say: Say) -> None:
    """Writes data.html into a run's folder, unless it is there. The trials of a search, which share their data, have
    none."""
    from jobs.common.report.data_report import DATA_FILE, write_data_report  # Jinja2 is not needed by --help

    if not store.exists(DATA_FILE):
        sections = job.data_sections(config, dataset) if job.data_sections else ()
        write_data_report(store, config.run.name, dataset, sections, config.data.uri)
        say(f"what the data is: {store.location(DATA_FILE)}")
