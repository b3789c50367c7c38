# Source this file: readies a shell for the dagster and dg commands.
_atft_root="$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")" && pwd)"
. "$_atft_root/.venv/bin/activate"
export DAGSTER_HOME="${DAGSTER_HOME:-$_atft_root/dagster_home}"
export DAGSTER_MODULE_NAME=atft_pipeline.definitions
export ATFT_DATA_DIR="${ATFT_DATA_DIR:-$_atft_root/data}"
unset _atft_root

# `dagster asset materialize` finds the project by DAGSTER_MODULE_NAME and nothing else; the servers
# that `dagster dev` and `dg dev` start refuse it, because they are also given a workspace file.
dagster() { _atft_without_module_name_for_dev dagster "$@"; }
dg() { _atft_without_module_name_for_dev dg "$@"; }
_atft_without_module_name_for_dev() {
    if [ "${2-}" = dev ]; then env -u DAGSTER_MODULE_NAME "$@"; else command "$@"; fi
}
