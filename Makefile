# make demo      a portal with consoles in the browser; ONCE=1 ends by itself, VNC=HOST:PORT shows a real VNC server too
# make test      the whole suite in its own virtual environment
# make lint      ruff, mypy strict, a docstring on every public name
# make install   lay the service out under DESTDIR and PREFIX; make uninstall takes it away
# make clean     forget the virtual environments and caches

PYTHON  ?= python3
VENV    ?= .venv
# pip options for the test environment, such as "-c tests/lowest.txt".
PIP_ARGS ?=
BIN      = $(VENV)/bin

.PHONY: demo test lint programs install install-places install-environment install-files uninstall clean

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

# What an installation is: a virtual environment of its own, two commands, and the files beside them. It is made for
# PREFIX and put under DESTDIR, from where a package or `cp -a` may take it to /. PYTHON has to be there too, at the same
# path, and the user oneadmin has to be able to run it.
DESTDIR  ?=
PREFIX   ?= /usr
VENVDIR   = $(PREFIX)/lib/one/vnctoken
UNITDIR   = $(PREFIX)/lib/systemd/system
SHAREDIR  = $(PREFIX)/share/vnctoken
DOCDIR    = $(PREFIX)/share/doc/vnctoken
CONF      = /etc/one/vnctoken-server.conf
PROXYENV  = /etc/one/vnctoken-websockify.env
LOGROTATE = /etc/logrotate.d/vnctoken
PROXYLOGS = /etc/logrotate.d/vnctoken-websockify
# The environment grows beside the one in use and takes its place when it is complete.
GROWING   = $(abspath $(DESTDIR)$(VENVDIR)).new

install: install-environment install-files

install-places:
	@case "$$DESTDIR" in *[!A-Za-z0-9/._+~-]*) echo 'DESTDIR: letters, digits and /._+~- only' >&2; exit 1;; esac
	@case "$${PREFIX-/usr}" in [!/]*|*[!A-Za-z0-9/._+-]*|'') echo 'PREFIX: an absolute path, letters, digits and /._+- only' >&2; exit 1;; esac

install-environment: install-places
	rm -rf '$(GROWING)'
	$(PYTHON) -m venv '$(GROWING)'
# From a copy: setuptools leaves build/ and *.egg-info in the tree it builds.
	set -e; tree=$$(mktemp -d); trap 'rm -rf "$$tree"' EXIT; \
	cp -R setup.cfg pyproject.toml README.md LICENSE vnctoken twisted "$$tree"; \
	'$(GROWING)/bin/python' -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-compile \
	    $(PIP_ARGS) "$$tree[tls,proxy,login,events,redis,jwt]"
	'$(GROWING)/bin/python' -B -m pip uninstall --quiet --disable-pip-version-check --yes pip
# As it will be at its place: the paths of that place, and byte code made now, as the service cannot write there.
# Byte code goes by hash, so that no time stamp has to survive the move.
	find '$(GROWING)' -name __pycache__ -type d -prune -exec rm -rf {} +
	grep -rlIZF -- '$(GROWING)' '$(GROWING)' | xargs -0r sed -i 's|$(GROWING)|$(VENVDIR)|g'
	'$(GROWING)/bin/python' -B -W ignore -m compileall -q -f --invalidation-mode checked-hash -s '$(GROWING)' -p '$(VENVDIR)' '$(GROWING)/lib'
	chmod -R u=rwX,go=rX '$(GROWING)'
	rm -rf '$(DESTDIR)$(VENVDIR)'
	mv '$(GROWING)' '$(DESTDIR)$(VENVDIR)'
	@case $$(readlink -f '$(DESTDIR)$(VENVDIR)/bin/python') in "$$HOME"/*|/home/*) \
	    echo 'The service cannot run a Python in a home directory: make install PYTHON=/usr/bin/python3' >&2;; \
	esac

install-files: install-places
	install -d '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(UNITDIR)/opennebula-sunstone.service.wants' \
	    '$(DESTDIR)$(SHAREDIR)/nginx' '$(DESTDIR)$(SHAREDIR)/one' '$(DESTDIR)$(DOCDIR)/docs' '$(DESTDIR)$(dir $(CONF))' '$(DESTDIR)$(dir $(LOGROTATE))'
# -I: neither the current directory nor PYTHON* variables have a say in what runs.
	set -e; for command in server:server websockify:proxy; do \
	    file='$(DESTDIR)$(PREFIX)/bin/vnctoken-'$${command%:*}; \
	    printf '#!/bin/sh\nexec %s/bin/python -I -m vnctoken.%s "$$@"\n' '$(VENVDIR)' $${command#*:} >"$$file"; \
	    chmod 0755 "$$file"; \
	done
	set -e; for unit in vnctoken.service vnctoken-websockify.service; do \
	    file='$(DESTDIR)$(UNITDIR)'/$$unit; \
	    sed -e 's|=/usr/bin/vnctoken|=$(PREFIX)/bin/vnctoken|' -e 's|file:/usr/share/doc/vnctoken/|file:$(DOCDIR)/|' \
	        systemd/$$unit >"$$file"; \
	    chmod 0644 "$$file"; \
	done
	ln -sfn ../vnctoken.service '$(DESTDIR)$(UNITDIR)/opennebula-sunstone.service.wants/vnctoken.service'
	install -m 0644 nginx/*.conf '$(DESTDIR)$(SHAREDIR)/nginx'
	install -m 0644 etc/one/tproxy-vnctoken.yaml etc/one/secgroup-vnctoken.tmpl '$(DESTDIR)$(SHAREDIR)/one'
	install -m 0644 README.md CHANGELOG.md LICENSE '$(DESTDIR)$(DOCDIR)'
	install -m 0644 $(wildcard docs/*.md docs/*.png) '$(DESTDIR)$(DOCDIR)/docs'
# Files somebody may have changed are replaced only where they are still as shipped; of that a copy is kept in SHAREDIR.
# logrotate would read a file.new in its folder, so there is none.
	@set -e; \
	settle() { \
	    file='$(DESTDIR)'$$2 shipped='$(DESTDIR)$(SHAREDIR)'/$$3; \
	    if [ ! -e "$$file" ] || cmp -s "$$1" "$$file" || cmp -s "$$shipped" "$$file"; then \
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
	rm -f '$(DESTDIR)$(PREFIX)/bin/vnctoken-server' '$(DESTDIR)$(PREFIX)/bin/vnctoken-websockify' \
	    '$(DESTDIR)$(UNITDIR)/vnctoken.service' '$(DESTDIR)$(UNITDIR)/vnctoken-websockify.service' \
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
