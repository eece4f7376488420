"""The scripts that bash, zsh and fish read: options stand in them, names are asked for when a key is pressed."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from lorabuild.completing.commands import Command

ASK = "_complete"  # the verb that answers, which no help tells of

# What bash and zsh share: for a verb and the word before, which options, choices and kind of name may come.
_WHAT = """\
_lorabuild_what() { # VERB BEFORE
    options= choices= kind=
    case "$1" in
%s
    esac
    case "$1 $2" in
%s
    esac
}
"""

_BASH = """\
# bash completion of lorabuild: lorabuild completion bash > ~/.local/share/bash-completion/completions/lorabuild
%s
_lorabuild() {
    local line="${COMP_LINE:0:$COMP_POINT}" options choices kind found rest word
    local -a words
    read -ra words <<< "$line"
    case "$line" in *[[:space:]]) words+=("") ;; esac # a word is about to begin
    word="${words[${#words[@]}-1]}"
    COMPREPLY=()
    if [ "${#words[@]}" -le 2 ]; then
        found=%s
    else
        _lorabuild_what "${words[1]}" "${words[${#words[@]}-2]}"
        case "$word" in
            -*) found="$options" ;;
            *)
                found="$choices"
                [ -n "$kind" ] && found="$found $("${words[0]}" %s "$kind" "$word" 2>/dev/null)"
                ;;
        esac
    fi
    while IFS= read -r rest; do
        COMPREPLY+=("$rest")
    done < <(compgen -W "$found" -- "$word")
    rest="${word##*["$COMP_WORDBREAKS"]}" # bash puts in place only what follows a colon, say
    COMPREPLY=("${COMPREPLY[@]#"${word%%"$rest"}"}")
}
complete -o bashdefault -o default -F _lorabuild lorabuild
"""

_ZSH = """\
#compdef lorabuild
# zsh completion of lorabuild: lorabuild completion zsh > a folder of $fpath/_lorabuild
%s
_lorabuild() {
    local options choices kind word="${words[CURRENT]}"
    local -a found
    if (( CURRENT == 2 )); then
        found=(%s)
        compadd -a found
        return
    fi
    _lorabuild_what "${words[2]}" "${words[CURRENT-1]}"
    if [[ "$word" == -* ]]; then
        found=(${=options})
    else
        found=(${=choices})
        [[ -n "$kind" ]] && found+=(${(f)"$("${words[1]}" %s "$kind" "$word" 2>/dev/null)"})
    fi
    compadd -a found || _files
}
if [[ "${funcstack[1]}" == _lorabuild ]]; then
    _lorabuild "$@"
else
    compdef _lorabuild lorabuild
fi
"""


def bash(commands: Sequence[Command]) -> str:
    return _BASH % (_what(commands), shlex.quote(" ".join(one.name for one in commands)), ASK)


def zsh(commands: Sequence[Command]) -> str:
    return _ZSH % (_what(commands), " ".join(one.name for one in commands), ASK)


def fish(commands: Sequence[Command]) -> str:
    head = "# fish completion of lorabuild: lorabuild completion fish > ~/.config/fish/completions/lorabuild.fish"
    return "\n".join([head, "complete -c lorabuild -f", *(line for one in commands for line in _fish(one))]) + "\n"


def _what(commands: Sequence[Command]) -> str:
    verbs, values = [], []
    for command in commands:
        flags = " ".join(flag for option in command.options for flag in option.flags)
        what = [("options", f"{flags} --help".strip()), ("choices", " ".join(command.choices)), ("kind", command.kind)]
        verbs.append(f"        {command.name}) {_assigned(what)} ;;")
        for option in command.options:
            if option.takes:
                pattern = " | ".join(f'"{command.name} {flag}"' for flag in option.flags)
                what = [("options", ""), ("choices", " ".join(option.choices)), ("kind", option.kind)]
                values.append(f"        {pattern}) {_assigned(what)} ;;")
    return _WHAT % ("\n".join(verbs), "\n".join(values))


def _assigned(what: Sequence[tuple[str, str]]) -> str:
    return " ".join(f"{name}={shlex.quote(text) if text else ''}" for name, text in what)


def _fish(command: Command) -> Iterator[str]:
    within = f"-n '__fish_seen_subcommand_from {command.name}'"
    yield f"complete -c lorabuild -n __fish_use_subcommand -a {command.name} -d {_quoted(command.help)}"
    if command.kind or command.choices:
        yield f"complete -c lorabuild {within} -a {_asked(command.kind, command.choices)}"
    if command.files:
        yield f"complete -c lorabuild {within} -F"
    for option in command.options:
        flags = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags)
        value = ""
        if option.takes:
            told = option.kind or option.choices
            value = f" -x -a {_asked(option.kind, option.choices)}" if told else " -r -F"
        yield f"complete -c lorabuild {within} {flags}{value} -d {_quoted(option.help)}"


def _asked(kind: str, choices: Sequence[str]) -> str:
    """For fish, what a value may be: words, and what lorabuild answers."""
    asked = [f"(lorabuild {ASK} {kind} (commandline -ct))"] if kind else []
    return _quoted(" ".join([*choices, *asked]))


def _quoted(text: str) -> str:
    """Within fish's single quotes, \\\\ and \\' alone are other than they stand."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}
