"""Lua that compares versions and writes in one step. One function touches the keys of one document only.

Sent as a script (SCRIPT LOAD, EVALSHA) rather than as a function library (FUNCTION LOAD, FCALL): scripts exist in
every version of Redis and Valkey and on managed services, are identified by their content, so two releases of
replicator never replace each other's, and need no privilege beyond running them. A server forgets scripts when it
restarts or fails over, so every pipeline begins with the scripts it uses, which costs less than finding out.

A guard is the version, and nothing more for a document, ``d`` for a tombstone, ``e`` and the time of expiry for a
document that expires and whose version counts even when it is gone since then. Versions have up to 19 digits, more than
Lua's numbers hold: they are compared as text.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Script:
    text: bytes
    sha: bytes = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", digest.encode())


_COMMON = b"""
local function older(one, other)
  if #one ~= #other then return #one < #other end
  return one < other
end
local function read(guard)
  local found = redis.pcall('GET', guard)
  if type(found) == 'table' then return nil, nil, found.err end
  if not found then return nil, '' end
  local version, mark, expiry = string.match(found, '^(%d+)([de]?)(%d*)$')
  if not version then return nil, nil, 'FOREIGN' end
  return version, mark, nil, tonumber(expiry)
end
local function is_due(expiry)  -- else a document that is gone was removed by others
  return not expiry or expiry <= tonumber(redis.call('TIME')[1])
end
local function store(document, hash, expires, first, last)
  if hash then
    redis.call('DEL', document)
    for from = first, last, 1000 do
      redis.call('HSET', document, unpack(ARGV, from, math.min(from + 999, last)))
    end
    if expires ~= '' then redis.call('EXPIREAT', document, expires) end
  elseif expires ~= '' then
    redis.call('SET', document, ARGV[first], 'EXAT', expires)
  else
    redis.call('SET', document, ARGV[first])
  end
end
"""

WRITE = Script(
    _COMMON
    + b"""
-- KEYS: document and guard of each write. ARGV: whether to replace the same version, whether deletes and expiries are
-- remembered; then for each write its version, what to do, the time of expiry, the number of values, the values.
-- Returns for each write: 1 if applied; V and the version that is there; or E and an error.
local same, keep, at, results = ARGV[1] == '1', ARGV[2] == '1', 3, {}
local function apply(document, guard, version, what, expires, first, last)
  local known, mark, problem, expiry = read(guard)
  if problem then return 'E' .. problem end
  if known and not (older(known, version) or (same and known == version)) then
    local counts = mark == 'd' or (mark == 'e' and is_due(expiry))
    if counts or redis.call('EXISTS', document) == 1 then return 'V' .. known end
  end
  if what == 'delete' then
    if keep then
      local done = redis.pcall('SET', guard, version .. 'd')
      if done.err then return 'E' .. done.err end
    else
      redis.call('DEL', guard)
    end
    redis.call('DEL', document)
    return 1
  end
  local done
  if expires == '' then
    done = redis.pcall('SET', guard, version)
  elseif keep then
    done = redis.pcall('SET', guard, version .. 'e' .. expires)
  else
    done = redis.pcall('SET', guard, version .. 'e' .. expires, 'EXAT', expires)
  end
  if done.err then return 'E' .. done.err end
  store(document, what == 'hash', expires, first, last)
  return 1
end
for i = 1, #KEYS, 2 do
  local last = at + 3 + tonumber(ARGV[at + 3])
  results[#results + 1] = apply(KEYS[i], KEYS[i + 1], ARGV[at], ARGV[at + 1], ARGV[at + 2], at + 4, last)
  at = last + 1
end
return results
"""
)

REPAIR = Script(
    _COMMON
    + b"""
-- KEYS: document and guard. ARGV: the version that must be there, what to do, time of expiry, values. Returns 1 if so.
local known, mark = read(KEYS[2])
if known ~= ARGV[1] or mark == 'd' or redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if ARGV[2] == 'delete' then
  redis.call('SET', KEYS[2], known .. 'd')
  redis.call('DEL', KEYS[1])
  return 1
end
if ARGV[3] == '' then
  redis.call('SET', KEYS[2], known)
else
  redis.call('SET', KEYS[2], known .. 'e' .. ARGV[3])
end
store(KEYS[1], ARGV[2] == 'hash', ARGV[3], 4, #ARGV)
return 1
"""
)

SWEEP = Script(
    _COMMON
    + b"""
-- KEYS: document and guard of each. ARGV: a version. Replaces older documents by tombstones; returns how many.
local count = 0
for i = 1, #KEYS, 2 do
  local known, mark = read(KEYS[i + 1])
  if known and mark ~= 'd' and older(known, ARGV[1]) then
    redis.call('SET', KEYS[i + 1], ARGV[1] .. 'd')
    redis.call('DEL', KEYS[i])
    count = count + 1
  end
end
return count
"""
)

FORGET = Script(
    b"""
-- KEYS: document and guard of each. ARGV: what each guard was. Removes tombstones that are unchanged; returns how many.
-- The guard of a document that is there and expires does so with it from now on, as where nothing is remembered.
local count, now = 0, tonumber(redis.call('TIME')[1])
for i = 1, #KEYS, 2 do
  local was = ARGV[(i + 1) / 2]
  if redis.call('GET', KEYS[i + 1]) == was then
    local expiry = string.match(was, 'e(%d+)$')
    if redis.call('EXISTS', KEYS[i]) == 0 then
      count = count + redis.call('DEL', KEYS[i + 1])
    elseif expiry and tonumber(expiry) > now and redis.call('TTL', KEYS[i]) >= 0 then
      redis.call('EXPIREAT', KEYS[i + 1], expiry)
    end
  end
end
return count
"""
)

READ = Script(
    b"""
-- KEYS: document and guard of each. ARGV: what to read of documents. Returns for each the guard, and what was read:
-- by a command of that name; EXISTS: of a document that is there, whether its guard expires ("" or "stays"); EXPIRY:
-- when the document expires, in milliseconds since 1970, "never" if it does not.
local results, time = {}, redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local function expiry(document)
  local left = redis.call('PTTL', document)
  return left < 0 and 'never' or string.format('%.0f', now + left)
end
for i = 1, #KEYS, 2 do
  local guard, document = redis.pcall('GET', KEYS[i + 1]), false
  if type(guard) == 'table' then guard = false end
  if ARGV[1] == 'EXISTS' then
    document = redis.call('EXISTS', KEYS[i]) == 1 and (redis.call('TTL', KEYS[i + 1]) < 0 and 'stays' or '')
  elseif ARGV[1] == 'EXPIRY' then
    document = redis.call('EXISTS', KEYS[i]) == 1 and expiry(KEYS[i])
  elseif redis.call('EXISTS', KEYS[i]) == 1 then
    document = redis.pcall(ARGV[1], KEYS[i])
    if type(document) == 'table' and document.err then document = 'E' end
  end
  results[#results + 1] = {guard, document}
end
return results
"""
)

NOTE = Script(
    b"""
-- KEYS: a table's note. ARGV: pipeline, epoch, new id, server, whether the server loses nothing, the time, what to call
-- the cluster, the id that a run that resumes has found there (else empty). Returns the pipeline that has the table; if
-- it is this one, also its id, how many batches are counted, 1 unless batches may be missing (the server is another one
-- than that which counted the last of this epoch), and which slots were where.
-- If the note or the beginning of the epoch is gone since the run has found it, the id says so from now on, until a
-- later epoch replaces what is there.
local pipeline, epoch, server, id = unpack(redis.call('HMGET', KEYS[1], 'pipeline', 'epoch', 'server', 'id'))
if pipeline and pipeline ~= ARGV[1] then return {pipeline} end
local certain, order = 1, tonumber(epoch or '0') - tonumber(ARGV[2])
local is_marked = id and (string.sub(id, 1, 7) == 'emptied' or string.sub(id, -10) == 'incomplete')
if ARGV[8] ~= '' and (order < 0 or (order == 0 and id ~= ARGV[8])) then
  if not is_marked then redis.call('HSET', KEYS[1], 'id', 'emptied ' .. ARGV[3]) end
elseif is_marked and order < 0 then
  redis.call('HSET', KEYS[1], 'id', ARGV[3])
end
if order < 0 then
  redis.call('HSET', KEYS[1], 'pipeline', ARGV[1], 'epoch', ARGV[2], 'server', ARGV[4])
elseif server ~= ARGV[4] and ARGV[5] == '1' then
  redis.call('HSET', KEYS[1], 'server', ARGV[4])
elseif server ~= ARGV[4] then
  certain = 0
end
redis.call('HSETNX', KEYS[1], 'id', ARGV[3])
if ARGV[7] ~= '' then redis.call('HSETNX', KEYS[1], 'place', ARGV[7]) end
local fields, now = redis.call('HGETALL', KEYS[1]), tonumber(ARGV[6])
for i = 1, #fields, 2 do  -- the counts of processes that have long ended
  local at = string.sub(fields[i], 1, 3) == 'of:' and string.match(fields[i + 1], ' (%d+)$')
  if at and now - tonumber(at) > 30 * 86400 then redis.call('HDEL', KEYS[1], fields[i]) end
end
local now_id, batches, slots = unpack(redis.call('HMGET', KEYS[1], 'id', 'batches', 'slots'))
return {ARGV[1], now_id, tonumber(batches or '0'), certain, slots or ''}
"""
)

MARK = Script(
    b"""
-- KEYS: the tables' notes, the set of all prefixes. ARGV: the first one's id, the number of batches that are certainly
-- stored, how many to count (1 or 0), the pipeline, its epoch, the server (empty if it may lack batches of before), a
-- token of the process, how many of its own are certainly stored, the time, the prefixes. Counts a batch, and returns
-- how many there are, and how many of its own: -1 if some are missing, and then the first table is no longer the one it
-- was. Where a note is gone, everything is: this batch is all there is, and the note says so, lest its keys be taken
-- for those of others. Where it has an earlier epoch, the server lost the beginning of this one.
local lost, moved = false, {}
for i = 1, #KEYS - 1 do
  local epoch, server = unpack(redis.call('HMGET', KEYS[i], 'epoch', 'server'))
  if not epoch then
    redis.call('HSET', KEYS[i], 'pipeline', ARGV[4], 'epoch', ARGV[5], 'id', 'emptied', 'server', ARGV[6])
    redis.call('SADD', KEYS[#KEYS], ARGV[9 + i])
    lost = true
  elseif tonumber(epoch) < tonumber(ARGV[5]) then
    redis.call('HSET', KEYS[i], 'epoch', ARGV[5])
    lost = true
  end
  if ARGV[6] ~= '' and server ~= ARGV[6] then moved[#moved + 1] = KEYS[i] end
end
local mine, id = 'of:' .. ARGV[7], redis.call('HGET', KEYS[1], 'id')
local batches = tonumber(redis.call('HGET', KEYS[1], 'batches') or '0')
local own, at = string.match(redis.call('HGET', KEYS[1], mine) or '0 0', '^(%d+) (%d+)$')
if id ~= ARGV[1] then return -1 end
if lost or batches < tonumber(ARGV[2]) or tonumber(own) < tonumber(ARGV[8]) then
  redis.call('HSET', KEYS[1], 'id', id .. ' incomplete')
  return -1
end
for _, note in ipairs(moved) do redis.call('HSET', note, 'server', ARGV[6]) end
local count, now = tonumber(ARGV[3]), tonumber(ARGV[9])
if count == 1 or (tonumber(own) > 0 and now - tonumber(at) > 86400) then  -- still in use
  redis.call('HSET', KEYS[1], mine, string.format('%d %d', own + count, now))
end
if count == 1 then batches = redis.call('HINCRBY', KEYS[1], 'batches', 1) end
return {batches, own + count}
"""
)

NOTED = Script(
    b"""
-- KEYS: a table's note. ARGV: pipeline, epoch, the servers (empty if they may lack something), which slots are where.
-- Returns 1, or -1 if the servers lost the note or the beginning of the epoch: then the table is no longer the one it
-- was.
local id, epoch, server, slots = unpack(redis.call('HMGET', KEYS[1], 'id', 'epoch', 'server', 'slots'))
if not epoch then
  redis.call('HSET', KEYS[1], 'pipeline', ARGV[1], 'epoch', ARGV[2], 'id', 'emptied', 'server', ARGV[3])
  return -1
elseif tonumber(epoch) < tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'id', id .. ' incomplete')
  return -1
end
if ARGV[3] ~= '' and (server ~= ARGV[3] or slots ~= ARGV[4]) then
  redis.call('HSET', KEYS[1], 'server', ARGV[3], 'slots', ARGV[4])
end
return 1
"""
)


def counted(script: Script) -> Script:
    """Does what the script does on keys of one slot, and counts it in the tally of the slot, in one step.

    Behind the script's own: as the last of KEYS the tally; in ARGV the tally's id, how many are certainly counted, a
    token of the process, how many of its own are, the time, and what to count: 1; 0 to compare only; "own" among its
    own only, by a process that does not know whether all that others counted is still there: it would hide that from
    a run that has yet to compare. Returns the script's result, and the counts: of all, and of the process. -1 instead
    if some are missing: then the tally has another id from now on.
    """
    return Script(
        b"""
local step, now = table.remove(ARGV), tonumber(table.remove(ARGV))
local least, mine = tonumber(table.remove(ARGV)), 'of:' .. table.remove(ARGV)
local known, id, tally = tonumber(table.remove(ARGV)), table.remove(ARGV), table.remove(KEYS)
local function count()
  local found, batches, counts = unpack(redis.call('HMGET', tally, 'id', 'batches', mine))
  if found and found ~= id then return -1 end
  local own, at = string.match(counts or '0 0', '^(%d+) (%d+)$')
  batches, own, at = tonumber(batches or '0'), tonumber(own), tonumber(at)
  if not found or batches < known or own < least then
    redis.call('HSET', tally, 'id', 'incomplete ' .. mine)
    return -1
  end
  if step == '0' then
    if own > 0 and now - at > 86400 then  -- still in use
      redis.call('HSET', tally, mine, string.format('%d %d', own, now))
    end
    return {batches, own}
  end
  if own == 0 then  -- once for each process: the counts of those that have ended; others are renewed each day
    local fields = redis.call('HGETALL', tally)
    for i = 1, #fields, 2 do
      local used = string.sub(fields[i], 1, 3) == 'of:' and string.match(fields[i + 1], ' (%d+)$')
      if used and now - tonumber(used) > 3 * 86400 then redis.call('HDEL', tally, fields[i]) end
    end
  end
  redis.call('HSET', tally, mine, string.format('%d %d', own + 1, now))
  if step == '1' then batches = redis.call('HINCRBY', tally, 'batches', 1) end
  return {batches, own + 1}
end
local function apply_script()
"""
        + script.text
        + b"""
end
local result = apply_script()
return {result, count()}
"""
    )


NOTHING = Script(b"return 1\n")
