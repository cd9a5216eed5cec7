#!lua
-- Uses _pool _money
-- Admit several calls where that is plain: the call is new and keeps its limits, nobody waits in the pool of its first
-- candidate, and the replica there that `admit` would take is alive and has a free slot. Reads and writes that the
-- calls share are made once, so a call costs a third of what `admit` does. What is not plain is left as it is.
--
-- KEYS  1 fence, 2 epoch, 3 ev, then the nine of the pool (_pool), then R rate buckets, B budgets, and one resv per call
-- ARGV  1 pool, 2 lease ttl (ms), 3 resv ttl (ms), 4 a replica is dead after (ms), 5 replicas to look at,
--       6 rate buckets R, 7 budgets B, 8 JSON list of the calls (one argument costs both sides less than dozens), each
--       [request id, tokens, class, tenant, hold (micro-USD), note, checked (as of `admit`), base, per token (nano-USD),
--       affine replica or '', credit (nano-USD), [its rate buckets], [its budgets]];
--       a rate bucket is which (1 = the first), increment (us), burst (us), one behind the other;
--       a budget is which, limit (micro-USD), ttl (ms)
-- Reply per call {1, 0, replica, address, fence, lease expiry (ms)} as of `admit`, or {5}: ask `admit`
-- Time  TIME

local ALONE = { 5 }

local pool = pool_at(4, ARGV[1])
local lease_ttl_ms, dead_after_ms, look_at = tonumber(ARGV[2]), tonumber(ARGV[4]), tonumber(ARGV[5])
local buckets, budgets = tonumber(ARGV[6]), tonumber(ARGV[7])
local asked = cjson.decode(ARGV[8])
local calls = #asked
local first_bucket = 4 + POOL_KEYS
local first_budget = first_bucket + buckets
local first_resv = first_budget + budgets

local replies = {}
if redis.call('EXISTS', pool.q) == 1 then
  for i = 1, calls do
    replies[i] = ALONE
  end
  return replies
end

local at_us = now_us()
local now_ms = to_ms(at_us)
local found = redis.call('MGET', KEYS[1], KEYS[2], unpack(KEYS, first_bucket, #KEYS))
local fence = next_fence(found[1], now_ms) - 1
local epoch_id = string.match(found[2] or '', '^open|(%d+)$')
local first_found = 3 - first_bucket -- found[first_found + i] is KEYS[i]

local arrivals = {}
for i = 1, buckets do
  arrivals[i] = math.max(tonumber(found[2 + i] or 0), at_us)
end
local books = {}
for i = 1, budgets do
  local spent, held = parse_budget(found[2 + buckets + i])
  books[i] = { spent = spent, held = held, is_new = not found[2 + buckets + i] }
end

-- So many of the least loaded that the `look_at` least loaded are among them after every grant of this script.
local entries, entry_of = {}, {}
local function add_entry(replica, reps_score)
  local entry = { replica = replica, tokens = reps_score, full = reps_score >= FULL }
  entries[#entries + 1] = entry
  entry_of[replica] = entry
end
local row = redis.call('ZRANGE', pool.reps, 0, look_at + calls - 2, 'WITHSCORES')
for i = 1, #row, 2 do
  add_entry(row[i], tonumber(row[i + 1]))
end
local least_loaded = #entries

local function order(a, b)
  local score_a, score_b = a.full and a.tokens % FULL + FULL or a.tokens, b.full and b.tokens % FULL + FULL or b.tokens
  if score_a ~= score_b then
    return score_a < score_b
  end
  return a.replica < b.replica
end

local function named_entry(replica)
  local entry = entry_of[replica]
  if entry == nil then
    local reps_score = redis.call('ZSCORE', pool.reps, replica)
    if reps_score then
      add_entry(replica, tonumber(reps_score))
      entry = entry_of[replica]
    end
    entry_of[replica] = entry or false
  end
  return entry or nil
end

-- As `best_replica` chooses; nil where it would have to look further.
local function choose(need, base, per_token, affine, credit)
  local best = nil
  if affine == '' then
    for i = 1, least_loaded do
      if not best or order(entries[i], best) then
        best = entries[i]
      end
    end
    if not best or best.full then
      return nil
    end
  else
    local seen = {}
    for i = 1, least_loaded do
      seen[i] = entries[i]
    end
    table.sort(seen, order)
    local also = named_entry(affine)
    local among = also and { also } or {}
    for i = 1, math.min(look_at, #seen) do
      if seen[i] ~= also then
        among[#among + 1] = seen[i]
      end
    end
    for _, entry in ipairs(among) do
      if not entry.full then
        entry.cost = base + entry.tokens * per_token - (entry.replica == affine and credit or 0)
        if not best or is_before(entry, best) then
          best = entry
        end
      end
    end
    if not best then
      return nil
    end
  end
  if not best.address then
    local r = best.replica
    local books_of = redis.call('HMGET', pool.load, r .. '|hb', r .. '|req', r .. '|cap', r .. '|tcap', r .. '|addr')
    if tonumber(books_of[1] or 0) <= now_ms - dead_after_ms then
      return nil
    end
    best.requests, best.cap, best.token_cap = tonumber(books_of[2]), tonumber(books_of[3]), tonumber(books_of[4])
    best.address = books_of[5]
  end
  if best.token_cap == 0 or best.requests == 0 or best.tokens + need <= best.token_cap then
    return best
  end
  return nil
end

-- Rate limits, budgets and epoch of a call; true: kept, and taken.
local function take(own_buckets, own_budgets, hold, checked)
  for i = 1, #own_buckets, 3 do
    local increment, burst = own_buckets[i + 1], own_buckets[i + 2]
    if increment > burst or arrivals[own_buckets[i]] + increment - at_us > burst then
      return false
    end
  end
  for i = 1, #own_budgets, 3 do
    local book = books[own_budgets[i]]
    if book.spent + book.held + hold > own_budgets[i + 1] then
      return false
    end
  end
  if checked ~= '0' and (not epoch_id or (checked ~= '1' and checked ~= epoch_id)) then
    return false
  end
  for i = 1, #own_buckets, 3 do
    local bucket = own_buckets[i]
    arrivals[bucket] = arrivals[bucket] + own_buckets[i + 1]
  end
  for i = 1, #own_budgets, 3 do
    local book = books[own_budgets[i]]
    book.held = book.held + hold
    book.ttl_ms = own_budgets[i + 2]
  end
  return true
end

local leases, infos, touched, granted = {}, {}, {}, {}
local expiry_ms = now_ms + lease_ttl_ms
for i = 1, calls do
  local id, need, class, tenant, hold, note, checked, base, per_token, affine, credit, own_buckets, own_budgets =
    unpack(asked[i])
  replies[i] = ALONE
  if not found[first_found + first_resv + i - 1] and not granted[id] then
    local best = choose(need, base, per_token, affine, credit)
    if best and take(own_buckets, own_budgets, hold, checked) then
      granted[id] = true
      fence = fence + 1
      best.requests = best.requests + 1
      best.tokens = best.tokens + need
      best.full = score(best.requests, best.tokens, best.cap, best.token_cap) >= FULL
      touched[best.replica] = best
      leases[#leases + 1] = expiry_ms
      leases[#leases + 1] = id
      infos[#infos + 1] = id
      infos[#infos + 1] = string.format('%d|%d|0|%d|0|%s|%s', need, fence, now_ms, best.address, best.replica)
      write_open(KEYS[first_resv + i - 1], 'open', 0, pool.name, hold, note, ARGV[3])
      redis.call('XADD', KEYS[3], 'MAXLEN', '~', 100000, '*', 'kind', 'admitted', 'id', id, 'step', 0, 'pool', pool.name,
        'replica', best.replica, 'tenant', tenant, 'class', class)
      replies[i] = { 1, 0, best.replica, best.address, fence, expiry_ms }
    end
  end
end
if #leases == 0 then
  return replies
end

redis.call('ZADD', pool.lease, unpack(leases))
redis.call('HSET', pool.lease_info, unpack(infos))
for replica, entry in pairs(touched) do
  write_load(pool, replica, entry.requests, entry.tokens, entry.cap, entry.token_cap)
end
write_fence(KEYS[1], fence)
for i = 1, buckets do
  write_bucket(KEYS[first_bucket + i - 1], arrivals[i], at_us)
end
for i = 1, budgets do
  local book = books[i]
  if book.ttl_ms then
    write_budget(KEYS[first_budget + i - 1], book.is_new, book.spent, book.held, book.ttl_ms)
  end
end
return replies
