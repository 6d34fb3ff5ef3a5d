# make demo      a portal with consoles in the browser; ONCE=1 ends by itself, VNC=HOST:PORT shows a real VNC server too
# make test      the whole suite in its own virtual environment
# make lint      ruff, mypy strict, a docstring on every public name
# make fuzz      inputs nobody would write, for SECONDS=60 a target (docs/fuzzing.md)
# make faults    what happens when things break (docs/reliability.md); make soak MINUTES=10 whether anything grows
# make install   lay the service out under DESTDIR and PREFIX; make uninstall takes it away
# make dist      wheel and sdist, in dist/
# make deb       a package for this Debian and this architecture, in dist/; make rpm for its relatives (docs/installation.md)
# make clean     forget the virtual environments and caches

PYTHON  ?= python3
VENV    ?= .venv
# pip options for the test environment, such as "-c tests/lowest.txt".
PIP_ARGS ?=
BIN      = $(VENV)/bin

.PHONY: demo test lint programs fuzz faults soak install install-places install-environment install-files uninstall dist deb rpm clean

demo: $(VENV)/.demo $(VENV)/.novnc
	@$(BIN)/python -m vnctoken.sandbox.demo $(if $(ONCE),--once) $(if $(VNC),--vnc $(VNC))

test: $(VENV)/.test $(VENV)/.novnc programs
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

SECONDS ?= 60
MINUTES ?= 10

fuzz: $(VENV)/.test
	PYTHONPATH=tests $(BIN)/python -m fuzz --seconds $(SECONDS)

faults: $(VENV)/.test programs
	PYTHONPATH=tests $(BIN)/python -m faults

soak: $(VENV)/.test programs
	PYTHONPATH=tests $(BIN)/python -m faults.soak --minutes $(MINUTES)

# What the tests run besides Python: installed from Debian's packages where we may, named where we may not.
programs:
	tests/system-programs

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed; try make PYTHON=python3.12") if sys.version_info < (3, 10) else None'
	@echo 'Making a virtual environment in $(VENV), once'
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.venv setup.cfg pyproject.toml
	@$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --editable '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/.venv setup.cfg pyproject.toml
	@$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --editable '.[test]'
	@touch $@ $(VENV)/.demo

$(VENV)/.lint: $(VENV)/.venv setup.cfg pyproject.toml
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,lint]'
	@touch $@ $(VENV)/.demo $(VENV)/.test

# noVNC, as npm has it (older packages had no modules for browsers). Without npm the demo and the tests look for Debian's.
$(VENV)/.novnc: $(VENV)/.venv
	@if ! command -v npm >/dev/null; then echo 'npm is not installed; noVNC is not fetched'; \
	elif npm install --silent --no-audit --no-fund --prefix $(VENV) '@novnc/novnc@>=1.7' >/dev/null 2>&1; then touch $@; \
	else echo 'npm could not fetch @novnc/novnc'; fi

clean:
	rm -rf .venv .venv-* build dist *.egg-info .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What an installation is: a virtual environment of its own, three commands, and the files beside them. It is made for
# PREFIX and put under DESTDIR, from where a package or `cp -a` may take it to /. PYTHON has to be there too, at the same
# path, and the user oneadmin has to be able to run it.
DESTDIR  ?=
PREFIX   ?= /usr
# Not empty: for a package, whose manager looks after changed configurations and enables the service itself.
PACKAGE  ?=
VENVDIR   = $(PREFIX)/lib/one/vnctoken
UNITDIR   = $(PREFIX)/lib/systemd/system
SHAREDIR  = $(PREFIX)/share/vnctoken
DOCDIR    = $(PREFIX)/share/doc/vnctoken
MANDIR    = $(PREFIX)/share/man
BASHDIR   = $(PREFIX)/share/bash-completion/completions
# Where zsh looks: Debian's and the others'.
ZSHDIR    = $(PREFIX)/share/zsh/$(if $(wildcard /etc/debian_version),vendor-completions,site-functions)
CONF      = /etc/one/vnctoken-server.conf
PROXYENV  = /etc/one/vnctoken-websockify.env
LOGROTATE = /etc/logrotate.d/vnctoken
PROXYLOGS = /etc/logrotate.d/vnctoken-websockify
COMMANDS  = vnctoken vnctoken-server vnctoken-websockify
UNITS     = vnctoken.service vnctoken.socket vnctoken-websockify.service
MANPAGES  = vnctoken.1 vnctoken-server.conf.5 vnctoken-server.8
# The environment grows beside the one in use and takes its place when it is complete.
GROWING   = $(abspath $(DESTDIR)$(VENVDIR)).new
# Folders that are missing, for everybody whatever the umask is; `install -d` would open one that is there, as /etc/one.
folders   = set -e; for folder in $(1); do [ -d "$$folder" ] || install -d "$$folder"; done

install: install-environment install-files

install-places:
	@case "$$DESTDIR" in *[!A-Za-z0-9/._+~-]*) echo 'DESTDIR: letters, digits and /._+~- only' >&2; exit 1;; esac
	@case "$${PREFIX-/usr}" in [!/]*|*[!A-Za-z0-9/._+-]*|'') echo 'PREFIX: an absolute path, letters, digits and /._+- only' >&2; exit 1;; esac

install-environment: install-places
	$(call folders,'$(DESTDIR)$(dir $(VENVDIR))')
	rm -rf '$(GROWING)'
	$(PYTHON) -m venv '$(GROWING)'
# From a copy: setuptools leaves build/ and *.egg-info in the tree it builds.
	set -e; tree=$$(mktemp -d); trap 'rm -rf "$$tree"' EXIT; \
	cp -R setup.cfg pyproject.toml README.md LICENSE vnctoken twisted "$$tree"; \
	'$(GROWING)/bin/python' -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-compile \
	    $(PIP_ARGS) "$$tree[tls,proxy,login,events,redis,jwt,metrics]"
	'$(GROWING)/bin/python' -B -m pip uninstall --quiet --disable-pip-version-check --yes pip
# As it will be at its place: the paths of that place, and byte code made now, as the service cannot write there.
# Byte code goes by hash, so that no time stamp has to survive the move.
	find '$(GROWING)' -name __pycache__ -type d -prune -exec rm -rf {} +
	grep -rlIZF -- '$(GROWING)' '$(GROWING)' | xargs -0r sed -i 's|$(GROWING)|$(VENVDIR)|g'
	'$(GROWING)/bin/python' -B -W ignore -m compileall -q -f --invalidation-mode checked-hash -s '$(GROWING)' -p '$(VENVDIR)' '$(GROWING)/lib'
	chmod -R u=rwX,go=rX '$(GROWING)'
	rm -rf '$(DESTDIR)$(VENVDIR)'
	mv '$(GROWING)' '$(DESTDIR)$(VENVDIR)'
	@case $$(readlink -f '$(DESTDIR)$(VENVDIR)/bin/python') in "$${HOME:-/home}"/*|/home/*) \
	    echo 'The service cannot run a Python in a home directory: make install PYTHON=/usr/bin/python3' >&2;; \
	esac

install-files: install-places
	$(call folders,'$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(UNITDIR)' '$(DESTDIR)$(SHAREDIR)/nginx' '$(DESTDIR)$(SHAREDIR)/one' \
	    '$(DESTDIR)$(DOCDIR)/docs' '$(DESTDIR)$(BASHDIR)' '$(DESTDIR)$(ZSHDIR)' '$(DESTDIR)$(dir $(CONF))' \
	    '$(DESTDIR)$(dir $(LOGROTATE))' $(foreach page,$(MANPAGES),'$(DESTDIR)$(MANDIR)/man$(subst .,,$(suffix $(page)))'))
# -I: neither the current directory nor PYTHON* variables have a say in what runs.
	set -e; for command in vnctoken:client.command vnctoken-server:server vnctoken-websockify:proxy; do \
	    file='$(DESTDIR)$(PREFIX)'/bin/$${command%:*}; \
	    printf '#!/bin/sh\nexec %s/bin/python -I -m vnctoken.%s "$$@"\n' '$(VENVDIR)' $${command#*:} >"$$file"; \
	    chmod 0755 "$$file"; \
	done
	set -e; for unit in $(UNITS); do \
	    file='$(DESTDIR)$(UNITDIR)'/$$unit; \
	    sed -e 's|=/usr/bin/vnctoken|=$(PREFIX)/bin/vnctoken|' -e 's|file:/usr/share/doc/vnctoken/|file:$(DOCDIR)/|' \
	        systemd/$$unit >"$$file"; \
	    chmod 0644 "$$file"; \
	done
# Not in a package: with this link Sunstone starts the service even after `systemctl disable`.
	$(if $(PACKAGE),,$(call folders,'$(DESTDIR)$(UNITDIR)/opennebula-sunstone.service.wants'))
	$(if $(PACKAGE),,ln -sfn ../vnctoken.service '$(DESTDIR)$(UNITDIR)/opennebula-sunstone.service.wants/vnctoken.service')
	install -m 0644 nginx/*.conf '$(DESTDIR)$(SHAREDIR)/nginx'
	install -m 0644 etc/one/tproxy-vnctoken.yaml etc/one/secgroup-vnctoken.tmpl '$(DESTDIR)$(SHAREDIR)/one'
	install -m 0644 README.md CHANGELOG.md LICENSE '$(DESTDIR)$(DOCDIR)'
	install -m 0644 $(wildcard docs/*.md docs/*.png docs/*.json docs/*.yml) '$(DESTDIR)$(DOCDIR)/docs'
	set -e; for page in $(MANPAGES); do \
	    install -m 0644 docs/man/$$page '$(DESTDIR)$(MANDIR)'/man$${page##*.}; \
	done
	install -m 0644 completion/vnctoken.bash '$(DESTDIR)$(BASHDIR)/vnctoken'
	install -m 0644 completion/_vnctoken '$(DESTDIR)$(ZSHDIR)'
# Files somebody may have changed are replaced only where they are still as shipped; of that a copy is kept in SHAREDIR.
# logrotate would read a file.new in its folder, so there is none. A package's manager does its own, and has no copies.
	@set -e; \
	settle() { \
	    file='$(DESTDIR)'$$2 shipped='$(DESTDIR)$(SHAREDIR)'/$$3; \
	    if [ -n '$(PACKAGE)' ]; then \
	        install -m $$4 "$$1" "$$file"; \
	        return; \
	    elif [ ! -e "$$file" ] || cmp -s "$$1" "$$file" || cmp -s "$$shipped" "$$file"; then \
	        install -m $$4 "$$1" "$$file"; rm -f "$$file.new"; \
	    elif [ "$${2%/*}" = /etc/logrotate.d ]; then \
	        echo "Kept $$file, which has been changed; the new one is $$shipped"; \
	    else \
	        install -m $$4 "$$1" "$$file.new"; \
	        echo "Kept $$file, which has been changed; the new one is $$file.new"; \
	    fi; \
	    install -m 0644 "$$1" "$$shipped"; \
	}; \
	settle etc/one/vnctoken-server.conf '$(CONF)' vnctoken-server.conf 0640; \
	settle etc/one/vnctoken-websockify.env '$(PROXYENV)' vnctoken-websockify.env 0640; \
	settle logrotate/vnctoken '$(LOGROTATE)' logrotate 0644; \
	settle logrotate/vnctoken-websockify '$(PROXYLOGS)' logrotate-websockify 0644; \
	if [ "$$(id -u)" = 0 ] && getent group oneadmin >/dev/null; then \
	    chgrp oneadmin '$(DESTDIR)$(CONF)'* '$(DESTDIR)$(PROXYENV)'*; \
	fi
	@$(if $(DESTDIR),:,if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi)

uninstall:
	rm -rf '$(DESTDIR)$(VENVDIR)' '$(GROWING)' '$(DESTDIR)$(DOCDIR)'
	rm -f $(COMMANDS:%='$(DESTDIR)$(PREFIX)/bin/%') $(UNITS:%='$(DESTDIR)$(UNITDIR)/%') \
	    $(foreach page,$(MANPAGES),'$(DESTDIR)$(MANDIR)/man$(subst .,,$(suffix $(page)))/$(page)') \
	    '$(DESTDIR)$(BASHDIR)/vnctoken' '$(DESTDIR)$(ZSHDIR)/_vnctoken' \
	    '$(DESTDIR)$(UNITDIR)/opennebula-sunstone.service.wants/vnctoken.service' \
	    '$(DESTDIR)$(CONF).new' '$(DESTDIR)$(PROXYENV).new'
	@forget() { \
	    file='$(DESTDIR)'$$1; \
	    if cmp -s "$$file" '$(DESTDIR)$(SHAREDIR)'/$$2; then rm -f "$$file"; \
	    elif [ -e "$$file" ]; then echo "Kept $$file, which has been changed"; fi; \
	}; \
	forget '$(CONF)' vnctoken-server.conf; \
	forget '$(PROXYENV)' vnctoken-websockify.env; \
	forget '$(LOGROTATE)' logrotate; \
	forget '$(PROXYLOGS)' logrotate-websockify
	rm -rf '$(DESTDIR)$(SHAREDIR)'
# The folders that are empty now; others keep things of OpenNebula's.
	@rmdir '$(DESTDIR)$(UNITDIR)/opennebula-sunstone.service.wants' '$(DESTDIR)$(PREFIX)/lib/one' 2>/dev/null || :
	@$(if $(DESTDIR),:,if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi)

# Packages are built from the sdist, and by `make install`. Their Python is one of the distribution's, as they depend on
# its package; PYTHON may be another one.
DISTDIR        ?= dist
# Not abspath, which takes a space for the end of a name.
DIST            = $(if $(filter /%,$(firstword $(DISTDIR))),,$(CURDIR)/)$(DISTDIR)
PACKAGE_PYTHON ?= $(realpath /usr/bin/python3)
VERSION         = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' vnctoken/__init__.py)
# To dpkg and rpm, what comes before a version has a "~".
PACKAGE_VERSION = $(shell echo '$(VERSION)' | sed -E 's/\.?(a|b|rc|dev)([0-9]+)$$/~\1\2/')
SDIST           = $(DIST)/vnctoken-$(VERSION).tar.gz
TREE            = CHANGELOG.md LICENSE MANIFEST.in Makefile README.md pyproject.toml setup.cfg benchmarks completion docs \
                  etc logrotate nginx packaging systemd tests twisted vnctoken

# From a copy: setuptools leaves build/ and *.egg-info in the tree it builds, and takes up old ones.
dist:
	@mkdir -p '$(DISTDIR)'
	set -e; tree=$$(mktemp -d); trap 'rm -rf "$$tree"' EXIT; \
	mkdir "$$tree/vnctoken"; cp -R $(TREE) "$$tree/vnctoken"; \
	$(PYTHON) -m venv "$$tree/venv"; \
	"$$tree/venv/bin/pip" install --quiet --disable-pip-version-check build; \
	"$$tree/venv/bin/python" -m build --outdir '$(DIST)' "$$tree/vnctoken" >"$$tree/log" 2>&1 || \
	    { cat "$$tree/log" >&2; exit 1; }

# Without the variables that this make was given: they would have a say in what debian/rules and the spec give theirs. And
# without a compiler, which Debian takes for granted where something is built.
deb: dist
	set -e; tree=$$(mktemp -d); trap 'rm -rf "$$tree"' EXIT; cd "$$tree"; \
	tar -xzf '$(SDIST)'; cd 'vnctoken-$(VERSION)'; mv packaging/debian .; \
	sed -e 's/@VERSION@/$(PACKAGE_VERSION)/' -e "s/@DATE@/$$(date -R -r CHANGELOG.md)/" debian/changelog.in >debian/changelog; \
	MAKEFLAGS= PYTHON='$(PACKAGE_PYTHON)' dpkg-buildpackage --build=binary --no-sign --no-check-builddeps; \
	mv ../*.deb '$(DIST)'

rpm: dist
	set -e; tree=$$(mktemp -d); trap 'rm -rf "$$tree"' EXIT; \
	cp '$(SDIST)' "$$tree"; \
	MAKEFLAGS= rpmbuild -bb --define "_topdir $$tree" --define "_sourcedir $$tree" \
	    --define 'python $(PACKAGE_PYTHON)' --define 'release_version $(VERSION)' \
	    --define 'package_version $(PACKAGE_VERSION)' packaging/vnctoken.spec; \
	mv "$$tree"/RPMS/*/*.rpm '$(DIST)'
