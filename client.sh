#!/usr/bin/env bash
# Talks to a running Chimera with nothing but bash and curl; jq, if there, colours --json. See --help.
set -euo pipefail
set -f      # nothing here is a file name pattern
LC_ALL=C    # text is bytes: UTF-8 passes through as it is, and string operations are quick

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "client.sh: bash 4.4 or newer is needed, this is $BASH_VERSION" >&2
  exit 1
fi

URL=${CHIMERA_URL:-http://127.0.0.1:8000}
URL=${URL%/}
SILENCE_S=960 # no byte for so long, and a request has failed; a little more than the gateway itself waits
JSON=0        # --json: print answers as they are

usage() {
  cat <<'TEXT'
Usage: ./client.sh COMMAND [OPTIONS]

Models
  list                         models in the store
  ps                           models that workers have loaded
  show MODEL                   what a model is
  pull MODEL                   download a model
  rm MODEL                     delete a model
Inference (without --model: the first model of the list)
  generate --prompt TEXT [--model MODEL] [--tokens N] [--no-stream]
  chat     --prompt TEXT [--model MODEL] [--tokens N] [--no-stream]
  embed    --text TEXT   [--model MODEL]
Fleet
  instances                    the workers
  spawn [GPU] [--count N] [--wait]
                               more workers; GPU is an index, a uuid or cpu
  prune [ID...] [--gpu GPU] [--idle] [--force] [--wait]
                               fewer workers: those named, or, with nothing named, all
  status                       gateway, queue, workers and GPUs

Options
  --stream, --no-stream        print words as they come (the default), or all at once
  --json                       print the answer as JSON
  -h, --help

Environment
  CHIMERA_URL                  the gateway: http://127.0.0.1:8000
  CHIMERA_CA                   file with the certificate (or its authority's) to trust, for https://
  CHIMERA_API_KEY              sent with inference, if the gateway asks for keys
  ADMIN_TOKEN                  sent with instances, spawn, prune and status

Exit status: 0 done, 1 refused or failed, 2 wrong usage.
TEXT
}

fail() { # MESSAGE: one line, exit 1
  printf 'client.sh: %s\n' "$1" >&2
  exit 1
}

misused() { # MESSAGE: one line, exit 2
  printf 'client.sh: %s (./client.sh --help)\n' "$1" >&2
  exit 2
}

# --- JSON. Functions leave their result in REPLY, as $(...) would cut newlines at the end.

json_string() { # TEXT -> REPLY, a JSON string with its quotes
  local text=$1 backslash=\\ quote=\" code character escape
  text=${text//"$backslash"/"$backslash$backslash"}
  text=${text//"$quote"/"$backslash$quote"}
  if [[ $text == *[$'\x01'-$'\x1f']* ]]; then
    for ((code = 1; code < 32; code++)); do
      printf -v character '%b' "\\x$(printf '%02x' "$code")."
      printf -v escape '\\u%04x' "$code"
      character=${character%.} # the dot saved a newline
      text=${text//"$character"/"$escape"}
    done
  fi
  REPLY=$quote$text$quote
}

utf8() { # CODE POINT -> REPLY, its bytes
  local code=$1 format
  if ((code == 0 || (code >= 0xD800 && code <= 0xDFFF))); then
    code=0xFFFD # bash cannot hold a zero byte, and half a surrogate pair is no character
  fi
  if ((code < 0x80)); then
    printf -v format '\\x%02x' "$code"
  elif ((code < 0x800)); then
    printf -v format '\\x%02x' $((0xC0 | code >> 6)) $((0x80 | code & 63))
  elif ((code < 0x10000)); then
    printf -v format '\\x%02x' $((0xE0 | code >> 12)) $((0x80 | code >> 6 & 63)) $((0x80 | code & 63))
  else
    printf -v format '\\x%02x' $((0xF0 | code >> 18)) $((0x80 | code >> 12 & 63)) \
      $((0x80 | code >> 6 & 63)) $((0x80 | code & 63))
  fi
  printf -v REPLY '%b' "$format"
}

json_text() { # the inside of a JSON string -> REPLY, the text it stands for
  local rest=$1 text='' character code low
  while [[ $rest == *\\* ]]; do
    text+=${rest%%\\*}
    rest=${rest#*\\}
    character=${rest:0:1}
    rest=${rest:1}
    case $character in
      n) text+=$'\n' ;;
      t) text+=$'\t' ;;
      r) text+=$'\r' ;;
      b) text+=$'\b' ;;
      f) text+=$'\f' ;;
      u)
        if [[ $rest != [0-9a-fA-F][0-9a-fA-F][0-9a-fA-F][0-9a-fA-F]* ]]; then
          text+='\u' # not JSON; shown as it is
          continue
        fi
        code=$((16#${rest:0:4}))
        rest=${rest:4}
        if ((code >= 0xD800 && code <= 0xDBFF)) && [[ $rest == \\u[dD][c-fC-F][0-9a-fA-F][0-9a-fA-F]* ]]; then
          low=$((16#${rest:2:4}))
          rest=${rest:6}
          code=$((0x10000 + (code - 0xD800) * 0x400 + low - 0xDC00))
        fi
        utf8 "$code"
        text+=$REPLY
        ;;
      *) text+=$character ;; # \" \\ \/
    esac
  done
  REPLY=$text$rest
}

declare -A VALUES=() # what json_parse found: path, such as .models.0.name -> text, number, true, false or null
declare -a PATHS=()  # its paths in their order

json_parse() { # JSON -> VALUES, PATHS; false if it is no object or array
  local part token text='' tail in_string=0 kind='' prefix='' key='' index=0 mark
  local want_key=0 depth=0 IFS=$' \t\n'
  local -a parts kinds=() prefixes=() keys=() indexes=()
  VALUES=() PATHS=()
  [[ $1 =~ ^[[:space:]]*[[{] ]] || return 1
  mapfile -d '"' -t parts <<<"$1"
  for part in "${parts[@]}"; do
    if ((in_string)); then
      text+=$part
      tail=${part##*[!\\]}
      if ((${#tail} % 2)); then # the quote that ended this part was escaped
        text+='"'
        continue
      fi
      in_string=0
      json_text "$text"
      if ((want_key)); then
        key=$REPLY
      else
        json_put "$REPLY"
      fi
      continue
    fi
    for mark in '{' '}' '[' ']' ',' ':'; do
      part=${part//"$mark"/ $mark }
    done
    for token in $part; do
      case $token in
        '{' | '[')
          kinds[depth]=$kind prefixes[depth]=$prefix keys[depth]=$key indexes[depth]=$index
          if [[ $kind == '{' ]]; then prefix+=.$key; elif [[ $kind == '[' ]]; then prefix+=.$index; fi
          kind=$token index=0 depth=$((depth + 1))
          want_key=0
          [[ $kind == '[' ]] || want_key=1
          ;;
        '}' | ']')
          ((depth > 0)) || return 1
          depth=$((depth - 1)) want_key=0
          kind=${kinds[depth]} prefix=${prefixes[depth]} key=${keys[depth]} index=${indexes[depth]}
          ;;
        ',') if [[ $kind == '{' ]]; then want_key=1; else index=$((index + 1)); fi ;;
        ':') want_key=0 ;;
        *) json_put "$token" ;;
      esac
    done
    in_string=1 text=''
  done
  return 0
}

json_put() { # VALUE, at json_parse's place
  local path=$prefix.$key
  if [[ $kind == '[' ]]; then path=$prefix.$index; fi
  VALUES[$path]=$1
  PATHS+=("$path")
}

value() { # PATH [DEFAULT] -> REPLY; null counts as not there
  REPLY=${VALUES[$1]-null}
  if [[ $REPLY == null ]]; then REPLY=${2-}; fi
}

has_row() { # PREFIX: is there anything below it?
  local path
  for path in ${PATHS[@]+"${PATHS[@]}"}; do
    if [[ $path == "$1".* || $path == "$1" ]]; then return 0; fi
  done
  return 1
}

show_json() { # JSON
  if [[ -t 1 ]] && command -v jq >/dev/null; then
    jq -C . <<<"$1"
  else
    printf '%s\n' "$1"
  fi
}

# --- HTTP

curl_call() { # METHOD PATH BODY [CURL OPTIONS]: the answer, then a line "STATUS <http> <curl's exit status>"
  local method=$1 path=$2 body=$3 token=${CHIMERA_API_KEY-} status=0
  shift 3
  if [[ $path == /admin/* ]]; then token=${ADMIN_TOKEN-}; fi
  # A proxy that the environment names does not know this machine's own addresses.
  local direct="127.0.0.1,localhost,::1,${no_proxy-${NO_PROXY-}}"
  local -a request=(-s --noproxy "${direct%,}" -X "$method" --connect-timeout 5 --speed-limit 1 --speed-time "$SILENCE_S")
  request+=(-w '\nSTATUS %{http_code}' -H 'Content-Type: application/json' -H 'Expect:' "$@")
  if [[ -n ${CHIMERA_CA-} ]]; then request+=(--cacert "$CHIMERA_CA"); fi
  if [[ -n $body ]]; then request+=(--data-binary @-); fi
  # Token and body go through pipes: arguments would show in ps. printf is part of bash, no process.
  if [[ -n $token ]]; then
    curl "${request[@]}" -H @<(printf 'Authorization: Bearer %s' "$token") "$URL$path" <<<"$body" || status=$?
  else
    curl "${request[@]}" "$URL$path" <<<"$body" || status=$?
  fi
  printf ' %s\n' "$status"
}

check_answer() { # PATH HTTP-STATUS CURL-STATUS ANSWER: fails with one clear line if the request failed
  local path=$1 http=$2 curl=$3 answer=$4 text='' hint=''
  case $curl in
    0) ;;
    3) fail "CHIMERA_URL is not a URL: $URL" ;;
    5 | 6) fail "no such host: $URL (CHIMERA_URL names the gateway)" ;;
    7) fail "no gateway at $URL: start it with 'make run' or 'make start-all', or set CHIMERA_URL" ;;
    28) fail "$URL$path: no answer in time" ;;
    35) fail "$URL: no TLS there (curl exit status $curl): is it http://?" ;;
    60) fail "$URL: its certificate is not for that name, or not trusted: CHIMERA_URL is to have a name of the certificate, CHIMERA_CA the file to trust" ;;
    77) fail "CHIMERA_CA cannot be read, or holds no certificate: ${CHIMERA_CA-}" ;;
    18 | 52 | 56) fail "$URL$path: the connection broke before the answer was complete" ;;
    23) exit 1 ;; # nobody reads our output any more
    *) fail "$URL$path: curl failed with exit status $curl" ;;
  esac
  if ((http < 300)); then return; fi
  if json_parse "$answer"; then
    value .error
    text=$REPLY
    if [[ -z $text ]]; then value .error.message "$answer"; text=$REPLY; fi
  else
    text=${answer%%$'\n'*}
  fi
  case "$http $path" in
    40[13]\ /admin/*) hint=' (ADMIN_TOKEN holds the token)' ;;
    40[13]\ *) hint=' (CHIMERA_API_KEY holds the key)' ;;
  esac
  fail "$http: ${text:-no text}$hint"
}

call() { # METHOD PATH [BODY] -> ANSWER, VALUES; fails with one clear line
  local raw last
  raw=$(curl_call "$1" "$2" "${3-}")
  last=${raw##*$'\n'} # STATUS <http> <curl>
  ANSWER=${raw%$'\n'*}
  check_answer "$2" "$(cut_word 2 "$last")" "$(cut_word 3 "$last")" "$ANSWER"
  # An empty answer is one, too: that to rm.
  json_parse "$ANSWER" || [[ -z $ANSWER ]] || fail "$URL$2: the answer is not JSON: is that a Chimera?"
}

cut_word() { # N TEXT
  local -a words
  read -ra words <<<"$2"
  printf '%s' "${words[$1 - 1]}"
}

call_lines() { # PATH BODY FUNCTION: FUNCTION runs on each line's VALUES as it comes; true ends with done
  local path=$1 body=$2 on_line=$3 line http=0 curl=1 answer=''
  DONE=0
  while IFS= read -r line || [[ -n $line ]]; do
    if [[ $line == 'STATUS '* ]]; then
      read -r _ http curl <<<"$line"
      continue
    fi
    if [[ -z $line ]]; then continue; fi
    if ((JSON)); then show_json "$line"; fi
    if ! json_parse "$line"; then
      answer+=$line$'\n'
      continue
    fi
    value .error
    if [[ -z $REPLY ]]; then value .error.message; fi
    if [[ -n $REPLY ]]; then
      answer=$line
    else
      "$on_line"
    fi
  done < <(curl_call POST "$path" "$body" -N)
  if [[ -n $answer && $http == 2* ]] && json_parse "$answer"; then
    end_line
    value .error
    fail "the answer broke off: $REPLY"
  fi
  if ((curl || http >= 300)); then end_line; fi
  check_answer "$path" "$http" "$curl" "$answer"
  ((DONE)) || { end_line; fail "the answer ended before it was complete"; }
  end_line
}

AT_LINE_START=1

say() { # TEXT: a piece of an answer
  if [[ -n $1 ]]; then
    printf '%s' "$1"
    AT_LINE_START=0
    if [[ $1 == *$'\n' ]]; then AT_LINE_START=1; fi
  fi
}

end_line() {
  ((AT_LINE_START)) || printf '\n'
  AT_LINE_START=1
}

# --- Tables

ROWS=()

row() { # CELL...
  local IFS=$'\x1f'
  ROWS+=("$*")
}

table() { # prints ROWS, the first of which is the head, and forgets them
  local -a cells widths=()
  local line i
  for line in "${ROWS[@]}"; do
    IFS=$'\x1f' read -ra cells <<<"$line"
    for i in "${!cells[@]}"; do
      if ((${#cells[i]} > ${widths[i]-0})); then widths[i]=${#cells[i]}; fi
    done
  done
  for line in "${ROWS[@]}"; do
    IFS=$'\x1f' read -ra cells <<<"$line"
    for i in "${!cells[@]}"; do
      if ((i == ${#cells[@]} - 1)); then
        printf '%s\n' "${cells[i]}"
      else
        printf '%-*s  ' "${widths[i]}" "${cells[i]}"
      fi
    done
  done
  ROWS=()
}

size_text() { # BYTES -> REPLY, such as 253 MB
  local tenths unit=0
  local -a units=(B kB MB GB TB)
  if [[ ! $1 =~ ^[0-9]+$ ]]; then
    REPLY=-
    return
  fi
  tenths=$(($1 * 10))
  while ((tenths >= 10000 && unit < 4)); do
    tenths=$((tenths / 1000)) unit=$((unit + 1))
  done
  REPLY="$((tenths / 10)) ${units[unit]}"
  if ((unit && tenths < 100)); then REPLY="$((tenths / 10)).$((tenths % 10)) ${units[unit]}"; fi
}

seconds_text() { # SECONDS -> REPLY, such as 2h05m
  local seconds=${1%%.*}
  if [[ ! $seconds =~ ^[0-9]+$ ]]; then
    REPLY=-
  elif ((seconds < 100)); then
    REPLY=${seconds}s
  elif ((seconds < 3600)); then
    REPLY=$((seconds / 60))m$((seconds % 60))s
  elif ((seconds < 86400)); then
    printf -v REPLY '%dh%02dm' $((seconds / 3600)) $((seconds / 60 % 60))
  else
    printf -v REPLY '%dd%02dh' $((seconds / 86400)) $((seconds / 3600 % 24))
  fi
}

time_text() { # RFC 3339 -> REPLY, the minute
  REPLY=${1:0:16}
  REPLY=${REPLY/T/ }
  REPLY=${REPLY:--}
}

# --- Commands

print_if_json() { # true if --json has printed the answer
  if ((JSON)); then show_json "$ANSWER"; else return 1; fi
}

run_list() {
  local i name size
  call GET /api/tags
  if print_if_json; then return; fi
  row NAME ID SIZE MODIFIED
  for ((i = 0; ; i++)); do
    value ".models.$i.name"
    name=$REPLY
    if [[ -z $name ]]; then break; fi
    value ".models.$i.size"
    size_text "$REPLY"
    size=$REPLY
    value ".models.$i.modified_at"
    time_text "$REPLY"
    local modified=$REPLY
    value ".models.$i.digest" -
    REPLY=${REPLY#sha256:}
    row "$name" "${REPLY:0:12}" "$size" "$modified"
  done
  table
}

run_ps() {
  local i name size vram where
  call GET /api/ps
  if print_if_json; then return; fi
  row NAME SIZE WHERE UNTIL WORKERS
  for ((i = 0; ; i++)); do
    value ".models.$i.name"
    name=$REPLY
    if [[ -z $name ]]; then break; fi
    value ".models.$i.size" 0
    size=$REPLY
    value ".models.$i.size_vram" 0
    vram=$REPLY
    where=CPU
    if ((vram >= size && size > 0)); then where=GPU; elif ((vram > 0)); then where="$((100 * vram / size))% GPU"; fi
    value ".models.$i.expires_at"
    time_text "$REPLY"
    local until=$REPLY
    size_text "$size"
    size=$REPLY
    names_text ".models.$i.workers"
    row "$name" "$size" "$where" "$until" "$REPLY"
  done
  table
}

run_show() {
  local path i
  json_string "$MODEL"
  call POST /api/show "{\"model\":$REPLY}"
  if print_if_json; then return; fi
  row "$MODEL" ''
  for path in "${PATHS[@]}"; do
    case $path in
      .details.families* | .details.parent_model) ;;
      .details.* | .model_info.general.parameter_count | .model_info.*.context_length)
        value "$path" -
        row "  ${path##*.}" "$REPLY"
        ;;
      .model_info.*.embedding_length)
        value "$path" -
        row "  embedding_length" "$REPLY"
        ;;
    esac
  done
  local list=''
  for ((i = 0; ; i++)); do
    value ".capabilities.$i"
    if [[ -z $REPLY ]]; then break; fi
    list+="$REPLY "
  done
  if [[ -n $list ]]; then row '  capabilities' "${list% }"; fi
  table
}

LAST_STATUS=''

pull_line() {
  local status total completed
  if ((JSON)); then
    value .status
    if [[ $REPLY == success ]]; then DONE=1; fi
    return
  fi
  value .total 0
  total=$REPLY
  value .completed 0
  completed=$REPLY
  value .status
  status=$REPLY
  if [[ $status == success ]]; then DONE=1; fi
  if [[ -t 1 ]]; then
    if [[ $status != "$LAST_STATUS" && -n $LAST_STATUS ]]; then printf '\n'; fi
    printf '\r%s' "$status"
    if ((total > 0)); then printf ' %3d%%' $((100 * completed / total)); fi
    AT_LINE_START=0
  elif [[ $status != "$LAST_STATUS" ]]; then
    printf '%s\n' "$status"
  fi
  LAST_STATUS=$status
}

run_pull() {
  json_string "$MODEL"
  call_lines /api/pull "{\"model\":$REPLY}" pull_line
}

run_rm() {
  json_string "$MODEL"
  call DELETE /api/delete "{\"model\":$REPLY}"
  printf 'deleted %s\n' "$MODEL"
}

default_model() {
  if [[ -n $MODEL ]]; then return; fi
  call GET /api/tags
  value .models.0.name
  MODEL=$REPLY
  if [[ -z $MODEL ]]; then fail "the store has no model: ./client.sh pull MODEL"; fi
}

answer_line() { # one line of generate or chat
  if ! ((JSON)); then
    value .response
    if [[ -z $REPLY ]]; then value .message.content; fi
    say "$REPLY"
  fi
  value .done
  if [[ $REPLY == true ]]; then DONE=1; fi
}

run_generate() {
  default_model
  json_string "$MODEL"
  local body="{\"model\":$REPLY,\"stream\":$STREAM"
  if [[ -n $TOKENS ]]; then body+=",\"options\":{\"num_predict\":$TOKENS}"; fi
  json_string "$TEXT"
  if [[ $COMMAND == chat ]]; then
    body+=",\"messages\":[{\"role\":\"user\",\"content\":$REPLY}]}"
  else
    body+=",\"prompt\":$REPLY}"
  fi
  call_lines "/api/$COMMAND" "$body" answer_line
}

run_embed() {
  local i some=''
  default_model
  json_string "$MODEL"
  local body="{\"model\":$REPLY"
  json_string "$TEXT"
  call POST /api/embed "$body,\"input\":$REPLY}"
  if print_if_json; then return; fi
  for ((i = 0; i < 5; i++)); do
    value ".embeddings.0.$i"
    some+="$REPLY "
  done
  local count=0 path
  for path in "${PATHS[@]}"; do
    if [[ $path == .embeddings.0.* ]]; then count=$((count + 1)); fi
  done
  if ((count == 0)); then fail "the answer holds no vector"; fi
  printf '%s: a vector of %d numbers: %s...\n' "$MODEL" "$count" "$some"
}

names_text() { # PREFIX -> REPLY: the names in a list, or those of the objects in it
  local i text=''
  for ((i = 0; ; i++)); do
    value "$1.$i"
    if [[ -z $REPLY ]]; then value "$1.$i.name"; fi
    if [[ -z $REPLY ]]; then break; fi
    text+="$REPLY,"
  done
  REPLY=${text%,}
  REPLY=${REPLY:--}
}

instance_rows() { # from VALUES' .instances
  local i p id state
  row ID STATE PLACE PORT PID BUSY MODELS RESTARTS UP CPU MEMORY GPU-MEMORY
  for ((i = 0; ; i++)); do
    p=.instances.$i
    value "$p.id"
    id=$REPLY
    if [[ -z $id ]]; then break; fi
    local -a cells=("$id")
    value "$p.state" -
    state=$REPLY
    value "$p.gpu.index"
    if [[ -n $REPLY ]]; then REPLY="gpu $REPLY"; else value "$p.placement" cpu; fi
    cells+=("$state" "$REPLY")
    value "$p.port" -
    cells+=("$REPLY")
    value "$p.pid" -
    cells+=("$REPLY")
    value "$p.inflight" 0
    local busy=$REPLY
    value "$p.slots" -
    cells+=("$busy/$REPLY")
    names_text "$p.models"
    cells+=("$REPLY")
    value "$p.restarts" 0
    cells+=("$REPLY")
    value "$p.uptime_s"
    seconds_text "$REPLY"
    cells+=("$REPLY")
    value "$p.cpu_percent" -
    cells+=("${REPLY%%.*}%")
    value "$p.rss_bytes"
    size_text "$REPLY"
    cells+=("$REPLY")
    value "$p.gpu_memory_bytes"
    size_text "$REPLY"
    row "${cells[@]}" "$REPLY"
  done
}

run_instances() {
  call GET /admin/instances
  if print_if_json; then return; fi
  instance_rows
  table
}

gpu_json() { # GPU as the user names it -> REPLY, JSON
  if [[ $1 =~ ^[0-9]+$ ]]; then REPLY=$1; else json_string "$1"; fi
}

run_spawn() {
  local body="{\"count\":$COUNT" query=''
  if [[ -n $GPU ]]; then
    gpu_json "$GPU"
    body+=",\"gpu\":$REPLY"
  fi
  if ((WAIT)); then query='?wait=1'; fi
  call POST "/admin/instances/spawn$query" "$body}"
  if print_if_json; then return; fi
  instance_rows
  table
}

run_prune() {
  local body='{' id i list='' query=''
  if ((${#IDS[@]})); then
    for id in "${IDS[@]}"; do
      json_string "$id"
      list+="$REPLY,"
    done
    body+="\"ids\":[${list%,}],"
  fi
  if [[ -n $GPU ]]; then
    gpu_json "$GPU"
    body+="\"gpu\":$REPLY,"
  fi
  if ((IDLE)); then body+='"idle":true,'; fi
  if ((FORCE)); then body+='"force":true,'; fi
  if ((WAIT)); then query='?wait=1'; fi
  call POST "/admin/instances/prune$query" "${body%,}}"
  if print_if_json; then return; fi
  for ((i = 0; ; i++)); do
    value ".pruned.$i"
    if [[ -z $REPLY ]]; then value ".pruned.$i.id"; fi
    if [[ -z $REPLY ]]; then break; fi
    printf 'pruned %s\n' "$REPLY"
  done
  if ((i == 0)); then echo 'nothing to prune'; fi
}

run_status() {
  local depth size oldest path i
  local -a heads cells
  call GET /admin/instances
  if print_if_json; then
    call GET /admin/gpus
    print_if_json
    return
  fi
  value .queue.depth 0
  depth=$REPLY
  value .queue.size -
  size=$REPLY
  value .queue.oldest_s 0
  seconds_text "$REPLY"
  oldest=$REPLY
  printf 'gateway  %s\nqueue    %s of %s waiting' "$URL" "$depth" "$size"
  if ((depth > 0)); then printf ', the oldest for %s' "$oldest"; fi
  value .primary.state
  if [[ -n $REPLY ]]; then printf '\nprimary  %s' "$REPLY"; fi
  printf '\n\n'
  instance_rows
  if ((${#ROWS[@]} > 1)); then table; else ROWS=(); echo 'no workers: ./client.sh spawn'; fi
  printf '\n'
  call GET /admin/gpus
  for ((i = 0; ; i++)); do
    if ! has_row ".gpus.$i"; then break; fi
    heads=() cells=()
    for path in "${PATHS[@]}"; do
      path=${path#".gpus.$i."}
      if [[ $path == .* || $path == *.* ]]; then continue; fi # of another GPU, or a list
      value ".gpus.$i.$path" -
      if [[ $path == *_bytes ]]; then size_text "$REPLY"; fi
      heads+=("${path%_bytes}")
      cells+=("$REPLY")
    done
    if ((i == 0)); then row "${heads[@]^^}"; fi
    row "${cells[@]}"
  done
  if ((i)); then
    table
  else
    value .fault
    printf 'GPUs: none%s\n' "${REPLY:+ ($REPLY)}"
  fi
  for path in "${PATHS[@]}"; do # what is said of all of them, such as why there are none
    value "$path"
    if ((i == 0)) && [[ $path == .fault ]]; then continue; fi # it is said
    if [[ $path != .*.* && -n $REPLY ]]; then printf '%s: %s\n' "${path#.}" "$REPLY"; fi
  done
}

# --- The command line

need_value() { # OPTION COUNT-OF-ARGUMENTS-LEFT
  if (($2 < 2)); then misused "$1 needs a value"; fi
}

need_number() { # OPTION VALUE
  if [[ ! $2 =~ ^[0-9]+$ ]]; then misused "$1 needs a whole number, not '$2'"; fi
}

MODEL='' TEXT='' TOKENS='' STREAM=true GPU='' COUNT=1 WAIT=0 IDLE=0 FORCE=0
IDS=()

parse_options() { # everything after the command
  local -a words=()
  local allowed="--json -h --help"
  case $COMMAND in
    generate | chat) allowed+=" --prompt --model --tokens --stream --no-stream" ;;
    embed) allowed+=" --text --model" ;;
    spawn) allowed+=" --gpu --count --wait" ;;
    prune) allowed+=" --gpu --idle --force --wait" ;;
  esac
  while (($#)); do
    if [[ $1 == --*=* ]]; then set -- "${1%%=*}" "${1#*=}" "${@:2}"; fi
    if [[ $1 == -?* && " $allowed " != *" $1 "* ]]; then misused "$COMMAND has no option $1"; fi
    case $1 in
      -h | --help) usage; exit 0 ;;
      --json) JSON=1 ;;
      --stream) STREAM=true ;;
      --no-stream) STREAM=false ;;
      --wait) WAIT=1 ;;
      --idle) IDLE=1 ;;
      --force) FORCE=1 ;;
      --prompt | --text) need_value "$1" $#; TEXT=$2; shift ;;
      --model) need_value "$1" $#; MODEL=$2; shift ;;
      --gpu) need_value "$1" $#; GPU=$2; shift ;;
      --tokens) need_value "$1" $#; need_number "$1" "$2"; TOKENS=$2; shift ;;
      --count) need_value "$1" $#; need_number "$1" "$2"; COUNT=$2; shift ;;
      *) words+=("$1") ;;
    esac
    shift
  done
  place_words ${words[@]+"${words[@]}"}
}

place_words() { # what was given without an option's name
  case $COMMAND in
    show | pull | rm)
      if (($# != 1)); then misused "$COMMAND needs one MODEL"; fi
      MODEL=$1
      return
      ;;
    prune) IDS=("$@"); return ;;
    spawn) if (($# == 1)); then GPU=$1; shift; fi ;;
    generate | chat)
      if [[ -z $TEXT ]]; then misused "$COMMAND needs --prompt TEXT"; fi
      ;;
    embed) if [[ -z $TEXT ]]; then misused "embed needs --text TEXT"; fi ;;
  esac
  if (($#)); then misused "$COMMAND does not know what to do with '$1'"; fi
}

main() {
  case ${1-} in
    '') usage >&2; exit 2 ;;
    -h | --help | help) usage; exit 0 ;;
    list | ps | show | pull | rm | generate | chat | embed | instances | spawn | prune | status) ;;
    *) misused "no such command: $1" ;;
  esac
  if ! command -v curl >/dev/null; then fail "curl is needed and not on PATH"; fi
  local name
  for name in CHIMERA_API_KEY ADMIN_TOKEN; do
    if [[ ${!name-} == *[$'\r\n']* ]]; then fail "$name must be one line"; fi
  done
  COMMAND=$1
  shift
  parse_options "$@"
  case $COMMAND in
    chat) run_generate ;;
    *) "run_$COMMAND" ;;
  esac
}

main "$@"
