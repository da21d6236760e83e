# `make setup` makes .venv and installs through constraints.txt, and the system's libraries where it may; every other
# target depends on it.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
# Stage processes with more threads than cores slow each other ten-fold (OpenMP spins), tests run several of them.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
PROMPT ?= a big red circle moving right on a blue background
OUT ?= demo.mp4
STAGES ?= fake
MINUTES ?= 30
TESTS ?= tests
# Processes that run tests beside each other; each takes whole files.
WORKERS ?= 2

# What Mooncake loads.
MOONCAKE_PACKAGES := libibverbs1 libnuma1 libcurl4
# What the suites of RDMA and of the model need beyond Python; installed by apt where that is allowed.
RDMA_PACKAGES := python3-pyverbs ibverbs-providers perftest $(MOONCAKE_PACKAGES)
MODEL_PACKAGES := spin gcc libc6-dev
MESH_PACKAGES := postgresql prometheus chromium iproute2 curl
GO_PACKAGES := golang-go protobuf-compiler protoc-gen-go protoc-gen-go-grpc golang-google-grpc-dev golang-github-golang-protobuf-1-5-dev
# A virtual machine with two soft-RoCE devices. Mooncake's own default of workers would spin on all its processors.
IN_VM := MC_WORKERS_PER_CTX=1 $(PYTHON) tests/rdma/vm run --memory-mib 6144 --timeout-s 1200

BARE := $(PYTHON) tests/bare

.PHONY: setup setup-rdma setup-bare setup-mesh demo test test-bare test-bare-quick test-documents test-failures test-families test-adapters test-families-all test-families-newest test-engines test-means test-fuzz test-outputs
.PHONY: test-autoscaling test-kube test-observability test-image test-chaos test-hosts test-ray test-standby test-model test-rdma test-wheel test-planning test-mesh test-parallel check proto proto-baseline bench bench-rdma bench-recovery bench-journal bench-takeover fuzz soak clean

setup: $(VENV)/.done
	@.ci/install --or-else "tensors go by shared memory and gRPC only" $(MOONCAKE_PACKAGES)

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[serve,rdma,dev]'
	touch $@

# What the suites of the mesh, of Kubernetes, of Ray and of the standby need beyond `make setup`.
setup-mesh: $(VENV)/.mesh
	@.ci/install $(MESH_PACKAGES)

$(VENV)/.mesh: $(VENV)/.done
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[serve,rdma,dev,mesh,postgres,ray]'
	touch $@

demo: setup
	$(BIN)/triptych generate "$(PROMPT)" --model examples/shapes/model --seed 1 -o $(OUT)

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(TESTS) $(foreach suite,rdma model_checker tie failures fuzz documents families families_all workflows adapters engines means outputs wheel hosts ray mesh autoscaling standby image observability kube planning parallel,--ignore tests/$(suite))

# The tables of docs/failures.md, row by row, on real processes. As root it also fills disks.
test-failures: setup
	$(BIN)/python -m pytest tests/failures

# A tiny model of each of diffusers' families: its start, guidance off, and the packages that it would miss.
test-families: setup
	$(BIN)/python -m pytest tests/families tests/workflows

# Adapters of tiny models: to the bit, without leaks, and through real processes.
test-adapters: setup
	$(BIN)/python -m pytest tests/adapters

# Text encoders in a process of their own (docs/engines.md).
test-engines: setup
	$(BIN)/python -m pytest tests/engines

# Every means of a role by itself, with diffusers' bits; what needs a device says so.
test-means: $(VENV)/.means
	$(BIN)/python -m pytest tests/means

$(VENV)/.means: $(VENV)/.done
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[serve,rdma,dev,quantization]'
	touch $@

# Every workflow of every family through four processes, to the bit, and docs/families.md as it is.
test-families-all: setup
	$(BIN)/python -m pytest tests/families_all

# The same with another diffusers: the newest that the registry has, or DIFFUSERS="==0.42.0". Of its own it brings
# nothing else, so that only diffusers differs.
test-families-newest: setup
	rm -rf $(VENV)/other-diffusers
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/other-diffusers 'diffusers$(DIFFUSERS)'
	PYTHONPATH=$(VENV)/other-diffusers $(BIN)/python -m pytest tests/families_all --deselect tests/families_all/test_page.py

# Several results of one job, sound, metadata and previews, of tiny models of diffusers' families.
test-outputs: setup
	.ci/install ffmpeg imagemagick
	$(BIN)/python -m pytest tests/outputs

# A share for every change; `make fuzz` is the whole, and docs/fuzzing.md says what it found.
test-fuzz: setup
	$(BIN)/python -m pytest tests/fuzz

fuzz: setup
	$(BIN)/python -m tests.fuzz.drive --runs 300000
	TRIPTYCH_FUZZ_CALLS=60000 $(BIN)/python -m pytest tests/fuzz/test_calls.py -s

# The rings, exhaustively, and the tie between worker and controller, by seeded schedules.
test-model: setup
	.ci/install $(MODEL_PACKAGES)
	$(BIN)/python -m pytest tests/model_checker tests/tie

# pyverbs comes with the machine's rdma-core, for the system's Python; where that isn't ours, the wheel ibverbs serves.
setup-rdma: setup
	.ci/install $(RDMA_PACKAGES)
	ln -sfn /usr/lib/python3/dist-packages/pyverbs $$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/pyverbs

test-rdma: setup-rdma
	$(IN_VM) '$(BIN)/python -m pytest tests/rdma -p no:cacheprovider'

# The README's two commands on a new Debian, as root and as a user who may install nothing (tests/bare says how).
test-bare: setup-bare
	$(BARE) --user root 'make demo && make test'
	$(BARE) --user newcomer 'make demo && make test'

# A share for every change.
test-bare-quick: setup-bare
	$(BARE) --user root 'make demo'
	$(BARE) --user newcomer 'make demo && make test TESTS="tests/transport tests/clients tests/rings"'

setup-bare:
	.ci/install debootstrap

# The controller's wishes, followed by a stand-in for KEDA and the HPA over real processes.
test-autoscaling: setup
	$(BIN)/python -m pytest tests/autoscaling

# The journal in PostgreSQL, and controllers that take over from each other.
test-standby: setup-mesh
	$(BIN)/python -m pytest tests/standby
	$(BIN)/python -m tests.chaos --standby postgres --seeds 1 --jobs 150 --faults 24 --seconds 40

# The chart, rendered and validated without a cluster.
test-kube: setup-mesh
	$(BIN)/python -m pytest tests/kube

# The Containerfile's steps in a Debian root, and a fleet of the image's user.
test-image: setup-mesh setup-bare
	$(BIN)/python -m pytest tests/image

# A fleet on a Ray cluster of three nodes, one of which is killed.
test-ray: setup-mesh
	$(BIN)/python -m pytest tests/ray

# A transformer of several processes.
test-parallel: setup
	$(BIN)/python -m pytest tests/parallel

# What fleets need, with models of full size without weights.
test-planning: setup
	$(BIN)/python -m pytest tests/planning

# The wheel, in an environment of its own.
test-wheel: setup
	$(BIN)/python -m pytest tests/wheel

# Prometheus and promtool on what ships in deploy/observability, and on a real fleet.
test-observability: setup-mesh
	$(BIN)/python -m pytest tests/observability

# Through the real Envoy of deploy/envoy, from a real browser too; Debian's Node.js is one that serves.
test-mesh: setup-mesh
	@command -v npm >/dev/null || .ci/install nodejs npm
	@.ci/install $(GO_PACKAGES)
	$(BIN)/python -m pytest tests/mesh

# Every command of the documents, as it is written.
test-documents: setup
	.ci/install curl
	$(BIN)/python -m pytest tests/documents

# Faults by a plan that follows from its seed (docs/reliability.md). SEED=7, SEED=1-20; without it, the two of CI.
test-chaos: setup
	.ci/install iproute2 || echo "without iproute2 there are no faults of the network"
	$(BIN)/python -m tests.chaos --stages $(STAGES) $(if $(SEED),--seeds $(SEED)) $(CHAOS)

# Each process on a host of its own: a network namespace with its own /dev/shm. Takes root.
test-hosts: setup
	.ci/install iproute2 || echo "without iproute2 there are no hosts"
	$(BIN)/python -m tests.hosts

soak: setup
	$(BIN)/python -m tests.chaos.soak --minutes $(MINUTES) $(SOAK)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf format protos --diff --exit-code
	$(BIN)/buf breaking protos --against protos/released.binpb
	$(BIN)/python -m pytest tests/test_tidy.py

proto: setup
	$(BIN)/buf format protos -w
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iprotos -Ithird_party --python_out=. --grpc_python_out=. \
		--mypy_out=quiet:. --mypy_grpc_out=quiet:. protos/triptych/*/*.proto
	$(BIN)/python -c "from triptych.rpc.service_config import service_config as made; print(made())" > docs/service_config.json
	$(BIN)/buf build --as-file-descriptor-set --exclude-source-info -o deploy/envoy/triptych.binpb
	$(BIN)/python -m tools.openapi

# The contract that `make check` holds changes against. Renew it with a release, not with a change.
proto-baseline: setup
	$(BIN)/buf build protos --exclude-source-info -o protos/released.binpb

bench: setup
	$(BIN)/python benchmarks/run.py

# Jobs that the journal takes in a second, in each of its databases.
bench-journal: setup-mesh
	$(BIN)/python -m benchmarks.bench_journal

# How long until the standby serves, in units of the lease.
bench-takeover: setup-mesh
	$(BIN)/python -m benchmarks.bench_takeover

bench-recovery: setup
	$(BIN)/python -m benchmarks.bench_recovery

bench-rdma: setup-rdma
	$(IN_VM) '$(BIN)/python -m benchmarks.bench_rdma'

clean:
	rm -rf $(VENV)
