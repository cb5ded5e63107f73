"What the benchmarks share: where results go, and on what they were measured."
import datetime, json, os, platform, subprocess, sys
from pathlib import Path
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
RESULTS = Path(__file__).parent/'results'


def machine() -> dict:
    "Hardware, versions and date"
    cpu = (next((line.split(':')[1].strip() for line in open('/proc/cpuinfo')
                 if line.startswith('model name')), '') if os.path.exists('/proc/cpuinfo')
           else platform.processor())
    commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True,
                            cwd=RESULTS.parent).stdout.strip()
    return dict(date=datetime.date.today().isoformat(), cpu=cpu, cores=os.cpu_count(),
                threads=torch.get_num_threads(), torch=torch.__version__,
                python=platform.python_version(), commit=commit,
                load=round(os.getloadavg()[0], 2) if hasattr(os, 'getloadavg') else None)


def keep(name: str, **result):
    "Write a result as JSON, with the machine it was measured on"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS/f'{name}.json').write_text(json.dumps(dict(machine=machine(), **result), indent=1)
                                        + '\n')
    print('kept in', RESULTS/f'{name}.json')
