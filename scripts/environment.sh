# Virtual environments for the scripts beside this file; source it in bash.
#
# make_environment FOLDER EXTRA [PACKAGE...]
#   Makes a virtual environment in FOLDER with this project, editable and with its optional EXTRA, and PACKAGEs without
#   their dependencies. Keeps one that was made from the same pyproject.toml. pip follows its usual configuration.
#   Sets BIN to the folder of the environment's programs.

make_environment() {
  local folder=$1 extra=$2 log=$1.log stamp python
  shift 2
  python=$(find_python) || return
  stamp="$("$python" -VV) $extra $* $(cksum <pyproject.toml)"
  if [ "$(cat "$folder/stamp" 2>/dev/null)" = "$stamp" ] && programs_of "$folder"; then
    return
  fi
  echo "making a Python environment in $folder (once, some minutes) ..." >&2
  mkdir -p "$(dirname "$folder")"
  rm -rf "$folder"
  {
    "$python" -m venv "$folder" && programs_of "$folder" &&
      "$BIN/python" -m pip install --disable-pip-version-check -e ".[$extra]" &&
      { [ $# = 0 ] || "$BIN/python" -m pip install --disable-pip-version-check --no-deps "$@"; }
  } >"$log" 2>&1 || {
    tail -n 20 "$log" >&2
    echo "error: cannot make the environment; all that pip said is in $log" >&2
    return 1
  }
  echo "$stamp" >"$folder/stamp"
}

# new_environment FOLDER
#   Makes a virtual environment in FOLDER with nothing but pip. Sets BIN.

new_environment() {
  local python
  python=$(find_python) && "$python" -m venv "$1" && programs_of "$1"
}

programs_of() {
  BIN=$(cd "$1" && pwd)/bin
  [ -d "$BIN" ] || BIN=${BIN%/bin}/Scripts # Windows
  "$BIN/python" -c "" 2>/dev/null
}

find_python() {
  local name
  for name in python3.14 python3.13 python3.12 python3.11 python3 python; do
    # a name may be a shim without a Python behind it, or a Python without venv
    if "$name" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  echo "error: no Python 3.11 or newer with the venv module was found; install one" >&2
  return 1
}
