# rootlessnet: every target works as root and as an ordinary user, and needs nothing but Go and the kernel.
#
#   make           build static binaries in bin/
#   make demo      demonstration: a server in a sandbox with a published port
#   make test      all tests, as an ordinary user (as root it creates one); RACE=1 with the race detector
#   make test-root the few tests that need root; part of make test as root
#   make test-long all tests, with the long forms of the load tests
#   make check     gofmt, vet, staticcheck, import directions, file lengths
#   make check-locks  the data plane's tests in a build that checks the order of locks
#   make bench     benchmark with no helper for comparison, results in bench/results/latest.json
#   make compare   benchmark with every other helper of this machine, results in bench/results/compare.*
#   make figures   write the results of the comparison into the README
#   make peers     install other helpers for the comparison
#   make fuzz      run every fuzz target for FUZZTIME (5s)
#   make install   PREFIX=/usr/local DESTDIR=
#   make drop-in   DIR=  install slirp4netns, pasta and rootlessport in a directory, and print how to make Podman use them

GO      ?= go
PREFIX  ?= /usr/local
DESTDIR ?=
# If the tree is not a git checkout (a tarball), the version is that of the file VERSION, or "dev".
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || cat VERSION 2>/dev/null || echo dev)

COMMANDS := rootless-run rootless-net
# Drop-in replacements for other programs of the same names. They are not installed in PATH; see the target drop-in.
DROPINS  := slirp4netns pasta rootlessport
LDFLAGS   = -s -w -X main.version=$(VERSION)
# Mode of /dev/net/tun for tests that are started as root; empty keeps the host's device.
TUN_MODE ?= 0666
# A time, or a number of inputs (20000x).
FUZZTIME ?= 5s
# Packages to test, and additional flags, such as TESTFLAGS="-run TestScorecard -v".
PKGS      ?= ./...
TESTFLAGS ?=
# Packages that are tested concurrently, except for those of ALONE. These measure times under load, so they need the processors
# for themselves: they are tested one after the other, after the others.
TESTP     ?= 3
ALONE     := rootlessnet/e2e rootlessnet/e2e/callers rootlessnet/bench

ifeq ($(RACE),1)
RACEFLAGS = -race
RACEENV   = CGO_ENABLED=1
else
RACEFLAGS =
RACEENV   = CGO_ENABLED=0
endif
# Directory of the programs under test, which are built with the flags of the tests.
TESTBIN = build/test$(RACEFLAGS)

export CGO_ENABLED = 0

.PHONY: all build demo test test-root test-long check check-locks bench compare figures peers install drop-in fuzz clean testbin tools
all: build

build:
	@test -d bin || echo "The first build downloads modules and compiles for a minute or several; go is silent while it compiles."
	@mkdir -p bin
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ $(COMMANDS:%=./cmd/%) $(DROPINS:%=./cmd/%)

build/testuser: $(wildcard internal/testuser/*.go)
	@mkdir -p build
	$(GO) build -trimpath -o $@ ./internal/testuser

testbin: build/testuser
	@mkdir -p $(TESTBIN)
	$(RACEENV) $(GO) build $(RACEFLAGS) -ldflags '-X main.version=$(VERSION)' -o $(TESTBIN)/ $(COMMANDS:%=./cmd/%) $(DROPINS:%=./cmd/%) ./examples/embed

# Both runs take place if the first fails: a failure in one package says nothing about the others.
test: testbin
	@all=$$($(GO) list $(PKGS)) || exit 1; alone=; together=; failed=0; \
	for p in $$all; do case " $(ALONE) " in *" $$p "*) alone="$$alone $$p";; *) together="$$together $$p";; esac; done; \
	run() { p=$$1; shift; if [ $$# -gt 0 ]; then \
		echo "go test -p $$p: $$# packages"; \
		$(RACEENV) ROOTLESSNET_BIN=$(CURDIR)/$(TESTBIN) TUN_MODE=$(TUN_MODE) \
			$(GO) test $(RACEFLAGS) -p $$p -timeout 15m -exec $(CURDIR)/build/testuser $(TESTFLAGS) "$$@" || failed=1; fi; }; \
	run $(TESTP) $$together; run 1 $$alone; exit $$failed
	@if [ "$$(id -u)" -eq 0 ] && [ "$(PKGS)" = ./... ]; then $(MAKE) --no-print-directory test-root; fi

# Tests that need root of the machine.
test-root: testbin
	$(RACEENV) ROOTLESSNET_BIN=$(CURDIR)/$(TESTBIN) $(GO) test $(RACEFLAGS) -timeout 5m -count=1 ./e2e/asroot
	$(RACEENV) $(GO) test $(RACEFLAGS) -timeout 5m -count=1 -run '^TestPeerInASandbox$$' ./api

test-long:
	ROOTLESSNET_LONG=1 $(MAKE) test TESTFLAGS='-timeout 60m $(TESTFLAGS)'

# Only what the demonstration runs is built: no drop-ins, and none of the modules of tests and tools. -v names each package when it
# is compiled, and go itself names each module that it downloads.
demo:
	@echo "1/2 Build with $$($(GO) version | cut -d' ' -f3). The first time, go downloads 22 modules (60 MB) and compiles some 330 packages, named"
	@echo "    below: a minute on a fast machine, several on a slow one. Later it takes seconds."
	@mkdir -p bin build
	$(GO) build -v -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/rootless-run
	$(GO) build -v -trimpath -o build/ ./internal/testuser ./examples/demo
	@echo "2/2 Run the demonstration: it takes a second, and needs no network."
	@ROOTLESSNET_BIN=$(CURDIR)/bin TUN_MODE=$(TUN_MODE) build/testuser build/demo

bench: build build/testuser
	@mkdir -p bench/results
	$(GO) build -trimpath -o build/bench ./bench
	@ROOTLESSNET_BIN=$(CURDIR)/bin TUN_MODE=$(TUN_MODE) build/testuser build/bench $(BENCHFLAGS) > build/bench.json
	@mv build/bench.json bench/results/latest.json

# Directory of programs to compare with, in addition to those in PATH; see bench/doc.go.
PEERS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/rootlessnet-peers/bin
ROOTLESSKIT = v3.0.1

# Additional flags of the comparison, such as COMPAREFLAGS="-quick" or "-only tcp-crr -helpers none,rootless-run,pasta".
compare: build build/testuser
	@mkdir -p bench/results build/peers
	@for p in $(PEERS)/*; do if [ -x "$$p" ]; then cp -fp "$$p" build/peers/; fi; done
	$(GO) build -trimpath -o build/bench ./bench
	@ROOTLESSNET_BIN=$(CURDIR)/bin ROOTLESSNET_PEERS=build/peers TUN_MODE=$(TUN_MODE) build/testuser build/bench \
		-helpers all -runs 3 -time 600ms -conns 1000 -congestion reno -lenient $(COMPAREFLAGS) > build/compare.json
	@mv build/compare.json bench/results/compare.json
	@build/bench render bench/results/compare.json bench/results

figures:
	$(GO) build -trimpath -o build/bench ./bench
	build/bench render bench/results/compare.json bench/results
	build/bench readme bench/results/compare.json README.md

# Other helpers are packages of Debian, which root can install; a newer release of RootlessKit is a Go module.
peers:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		apt-get install -y --no-install-recommends slirp4netns passt rootlesskit iperf3; \
	else \
		echo "slirp4netns, passt, rootlesskit and iperf3 are packages of the distribution: install them as root"; \
	fi
	mkdir -p $(PEERS)
	GOBIN=$(CURDIR)/build/gobin $(GO) install github.com/rootless-containers/rootlesskit/v3/cmd/rootlesskit@$(ROOTLESSKIT)
	mv build/gobin/rootlesskit $(PEERS)/rootlesskit-$(ROOTLESSKIT:v%=%)

check:
	@out=$$(gofmt -l $$(find . -name '*.go' -not -path './build/*')); test -z "$$out" || { echo "gofmt would change:"; echo "$$out"; exit 1; }
	$(GO) vet ./...
	$(GO) tool -modfile=tools/go.mod staticcheck ./...
	$(GO) test -count=1 ./internal/archtest

# What takes the locks of internal/lockrank.
LOCKPKGS := ./flow ./forwarder/... ./gateway ./splice ./internal/inbound ./internal/spin ./internal/breaker ./internal/lockrank
check-locks: testbin
	ROOTLESSNET_BIN=$(CURDIR)/$(TESTBIN) TUN_MODE=$(TUN_MODE) \
		$(GO) test -tags lockrank -p $(TESTP) -timeout 10m -exec $(CURDIR)/build/testuser -count=1 $(LOCKPKGS)

fuzz:
	@for pkg in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg 2>/dev/null | grep '^Fuzz' || true); do \
			echo "fuzz $$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x -parallel 2 $$pkg || exit 1; \
		done; \
	done

install: build
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 0755 $(COMMANDS:%=bin/%) $(DESTDIR)$(PREFIX)/bin/
	install -d $(DESTDIR)$(PREFIX)/libexec/rootlessnet
	install -m 0755 $(DROPINS:%=bin/%) $(DESTDIR)$(PREFIX)/libexec/rootlessnet/
	install -m 0644 $(wildcard docs/*.1) $(DESTDIR)$(PREFIX)/share/man/man1/
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions \
		$(DESTDIR)$(PREFIX)/share/zsh/site-functions $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	for c in $(COMMANDS); do \
		bin/$$c completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/$$c && \
		bin/$$c completion zsh > $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_$$c && \
		bin/$$c completion fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/$$c.fish || exit 1; \
	done

drop-in: build
	@test -n "$(DIR)" || { echo "usage: make drop-in DIR=directory"; exit 2; }
	@bin/rootless-net drop-in install $(DIR)

clean:
	rm -rf bin build
