# bash completion for vnctoken: its commands and their options. No VM ids, as they are known to oned alone.

_vnctoken() {
    local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local login='--user --password --endpoint --help' terms='--ttl --single-use --client'
    COMPREPLY=()
    case $previous in
        --user)
            mapfile -t COMPREPLY < <(compgen -u -- "$word")
            return
            ;;
        --password | --endpoint | --ttl | --client) return ;;
        -l | --list)
            mapfile -t COMPREPLY < <(compgen -W 'VM NAME TOKEN USER ISSUED EXPIRES USED ONCE CLIENT' -- "${word^^}")
            return
            ;;
    esac
    case $COMP_CWORD:${COMP_WORDS[1]} in
        1:*) set -- 'show token open revoke list --help --version' ;;
        *:show) set -- "$terms --json --xml $login" ;;
        *:token | *:open) set -- "$terms $login" ;;
        *:revoke) set -- "$login" ;;
        *:list) set -- "--json --xml --csv --list $login" ;;
        *) return ;;
    esac
    # An option is offered once somebody begins one: what comes without is a VM.
    if [[ $COMP_CWORD == 1 || $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$1" -- "$word")
    fi
}

complete -F _vnctoken vnctoken
