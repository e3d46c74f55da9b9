# Two commands do everything: `make demo` and `make test`. The rest is behind them.
#
#   make build   release binaries in target/release/, the static CNI plugin there too
#   make demo    three nodes in network namespaces; every pod reaches every pod
#                (BACKEND=vxlan, ipip or host-gw; DIRECT_ROUTING=1)
#   make test    all tests: unit, property, store conformance, kernel, end to end
#   make lint    format, clippy, documentation, dependencies: warnings are errors
#   make soak    three nodes under churn, kills, damage and outages of etcd for SOAK_MINUTES (10), then
#                all must be well; SOAK_SEED=NUMBER draws the same events again (nightly)
#   make soak-outage  five minutes without etcd under traffic and churn, and a virtual machine
#                that is paused until its blocks are another's (nightly, root)
#   make test-vm the end-to-end tests on Debian's own kernel, in virtual machines (root)
#   make test-kube  the same network on a real Kubernetes of three nodes (root, Go)
#   make conformance  the Kubernetes project's own network tests, all 47, on the same (root, Go)
#   make image   the container image as an OCI archive, without a container engine
#   make kube-bins  Kubernetes and what it needs, built once into a cache (11 CPU minutes)
#   make test-kube-store  the store's suite on a real API server of Kubernetes
#   make manifests  deploy/viaduct.yaml anew, from the kustomizations
#   make fuzz    each fuzz target for FUZZ_SECONDS (60), two at a time (TARGETS=ledger: only that one)
#   make bench   Viaduct beside the alternatives, as ratios
#   make deps    what the above need and apt has (called by them)

SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: all build shim demo test test-vm test-kube conformance test-kube-store kube-bins image manifests soak soak-outage fuzz lint bench deps clean

HOST_TARGET := $(shell rustc -vV | sed -n 's/^host: //p')
MUSL_TARGET := $(subst -gnu,-musl,$(HOST_TARGET))
# The plugin is static: musl where that Rust target is installed, else glibc.
HAVE_MUSL := $(wildcard $(shell rustc --print sysroot)/lib/rustlib/$(MUSL_TARGET)/lib)
SHIM_TARGET := $(if $(HAVE_MUSL),$(MUSL_TARGET),$(HOST_TARGET))

all: build

deps:
	@tests/setup.sh

# Static too, so that they run in an image that has nothing else (docs/adr/0155), and on any host.
# glibc, whose malloc the numbers were measured with; the target makes the flag theirs alone.
build: deps shim
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --target $(HOST_TARGET) \
		-p viaduct-controller -p viaduct-agent -p viaductctl
	install -m 0755 target/$(HOST_TARGET)/release/viaduct{-controller,-agent,ctl} target/release/

# Its own target and profile, so that `crt-static` touches nothing else.
shim: deps
	@echo "the CNI plugin is built static for $(SHIM_TARGET)$(if $(HAVE_MUSL),, (glibc: the Rust target $(MUSL_TARGET) is not installed))"
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --profile shim --target $(SHIM_TARGET) -p viaduct-cni --bin viaduct
	@mkdir -p target/release
	install -m 0755 target/$(SHIM_TARGET)/shim/viaduct target/release/viaduct

# BACKEND=host-gw and the like; DIRECT_ROUTING=1 beside vxlan and ipip.
demo: build
	target/release/viaductctl lab demo $(if $(BACKEND),--backend $(BACKEND)) $(if $(DIRECT_ROUTING),--direct-routing) $(DEMO_FLAGS)

# The end-to-end tests drive release binaries, as users do.
test: build
	VIADUCT_BIN_DIR=$(CURDIR)/target/release cargo test --workspace --locked --no-fail-fast

# SOAK_PLANT=loss, route, duplicate or leak: a fault on purpose, to see that it is found.
soak: build
	cargo build --locked -p viaduct-soak
	VIADUCT_BIN_DIR=$(CURDIR)/target/release target/debug/viaduct-soak

soak-outage: build
	VIADUCT_BIN_DIR=$(CURDIR)/target/release VIADUCT_OUTAGE_SECONDS=300 \
		cargo test --locked -p viaduct-e2e --test e2e -- zero_loss::pods_come_and_go
	VIADUCT_BIN_DIR=$(CURDIR)/target/release tests/vm/pause.sh

# A list in BACKENDS says which; the kernel stays in a cache outside of here. The test
# programs are those of `make test`, built here if they are not there, and run inside.
test-vm: build
	@tests/vm/setup.sh
	cargo test --workspace --locked --no-run --message-format json-render-diagnostics >target/vm-tests.json
	VIADUCT_BIN_DIR=$(CURDIR)/target/release tests/vm/run.sh target/vm-tests.json

image: build
	deploy/image/build.sh

kube-bins:
	@tests/kube/setup.sh
	@tests/kube/build.sh

# The programs of Kubernetes are built once, into a cache outside of here.
test-kube-store:
	KUBECTL="$$(tests/kube/build.sh)/bin/kubectl" deploy/generate.sh --check
	VIADUCT_KUBE_BINS="$$(tests/kube/build.sh)/bin" cargo test --locked -p viaduct-datastore -p viaduct-controller --test kube

# deploy/viaduct.yaml from the overlay vxlan.
manifests:
	KUBECTL=$${KUBECTL:-$$(tests/kube/build.sh)/bin/kubectl} deploy/generate.sh

# RUNS=iptables for one of its clusters only, CHECKS for some of the checks.
test-kube: build
	@tests/kube/setup.sh
	cargo build --release --locked -p viaduct-kube
	tests/kube/run.sh $(CHECKS)

# FOCUS=EXPRESSION for some of the tests, PROXY=nftables for the other mode of kube-proxy.
conformance: build
	@tests/kube/setup.sh suite
	cargo build --release --locked -p viaduct-kube
	tests/kube/conformance.sh '$(FOCUS)'

fuzz: deps
	fuzz/run.sh $(TARGETS)

bench: build
	cargo bench --locked -p viaduct-model
	VIADUCT_BIN_DIR=$(CURDIR)/target/release cargo run --release --locked -p viaduct-bench

# A cargo-deny of our own is built without optimisation: it is run once.
lint: export PATH := $(PATH):$(CURDIR)/target/tools/bin
lint: deps
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo clippy --workspace --test kube --locked -- -D warnings
	deploy/check.sh
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --document-private-items
	@command -v cargo-deny >/dev/null || CARGO_PROFILE_DEV_DEBUG=false cargo install cargo-deny --locked --debug --root target/tools
	cargo deny check bans licenses sources
	@if cargo deny fetch db >/dev/null 2>&1; then cargo deny check advisories; \
	else echo "advisories not checked: the advisory database cannot be fetched here"; fi

clean:
	cargo clean
