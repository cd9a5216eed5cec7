#!lua flags=allow-oom
-- Uses _pool _money
-- End several calls where that is plain: the call runs under a lease in this pool, cost no more than its hold, and
-- nobody waits there for its slot. Reads and writes that the calls share are made once. What is not plain is left as it
-- is.
--
-- KEYS  1 stats of the day, 2 ev, then the nine of the pool (_pool), then R rate buckets, B budgets, and one resv per call
-- ARGV  1 pool, 2 resv ttl (ms), 3 rate buckets R, 4 budgets B, 5 JSON list of the calls, each
--       [request id, cost (micro-USD), saved (micro-USD), tier, [its rate buckets], [its budgets]]; a rate bucket is
--       which (1 = the first), what to give back (us), one behind the other; a budget is which
-- Reply per call {1, cost, saved, 0} as of `settle`, or {5}: ask `settle`
-- Time  TIME
-- allow-oom: a server that is out of memory must still free slots and count money.

local ALONE = { 5 }

local pool = pool_at(3, ARGV[1])
local buckets, budgets = tonumber(ARGV[3]), tonumber(ARGV[4])
local asked = cjson.decode(ARGV[5])
local calls = #asked
local first_bucket = 3 + POOL_KEYS
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
local found = redis.call('MGET', unpack(KEYS, first_bucket, #KEYS))

local ids = {}
for i = 1, calls do
  ids[i] = asked[i][1]
end
local infos = redis.call('HMGET', pool.lease_info, unpack(ids))

local arrivals, corrected = {}, {}
for i = 1, buckets do
  arrivals[i] = math.max(tonumber(found[i] or 0), at_us)
end
local books = {}
for i = 1, budgets do
  if found[buckets + i] then
    local spent, held = parse_budget(found[buckets + i])
    books[i] = { spent = spent, held = held }
  end
end

local loads = {}
local function load_of(replica)
  if not loads[replica] then
    local r = replica
    local row = redis.call('HMGET', pool.load, r .. '|since', r .. '|cap', r .. '|tcap', r .. '|req', r .. '|tok')
    loads[replica] = { since = tonumber(row[1]), cap = tonumber(row[2] or 0), token_cap = tonumber(row[3] or 0),
      requests = tonumber(row[4]), tokens = tonumber(row[5]), changed = false }
  end
  return loads[replica]
end

local service_us = nil
local function learn(granted_ms)
  local took_us = math.max(0, now_ms - granted_ms) * 1000
  local known = service_us or tonumber(redis.call('HGET', pool.load, '#service_us') or nil)
  service_us = known and known + math.floor((took_us - known) / 8) or took_us
end

local ended, spent_sum, saved_sum, calls_of = {}, 0, 0, {}
local is_ended = {}
for i = 1, calls do
  local id, cost, saved, tier, own_buckets, own_budgets = unpack(asked[i])
  local known = reservation(found[first_resv - first_bucket + i])
  replies[i] = ALONE
  if known and not known.over and known.pool == pool.name and infos[i] and not is_ended[id]
    and (#own_budgets == 0 or cost <= known.hold) then
    is_ended[id] = true
    ended[#ended + 1] = id
    local tokens, fence, granted_ms, replica = string.match(infos[i], '^(%d+)|(%d+)|%d+|(%d+)|%d|[^|]*|(.*)$')
    local load = load_of(replica)
    if load.since and tonumber(fence) > load.since then
      load.requests = load.requests - 1
      load.tokens = load.tokens - tonumber(tokens)
      load.changed = true
    end
    learn(tonumber(granted_ms))
    for a = 1, #own_buckets, 2 do
      local bucket, back_us = own_buckets[a], own_buckets[a + 1]
      if back_us ~= 0 then
        arrivals[bucket] = math.max(arrivals[bucket], at_us) - back_us
        corrected[bucket] = true
      end
    end
    for _, budget in ipairs(own_budgets) do
      local book = books[budget]
      if book then
        book.spent = math.max(0, book.spent + cost)
        book.held = math.max(0, book.held - known.hold)
        book.changed = true
      end
    end
    spent_sum, saved_sum = spent_sum + cost, saved_sum + saved
    calls_of[tier] = (calls_of[tier] or 0) + 1
    write_over(KEYS[first_resv + i - 1], 'settled', known.step, cost, saved, ARGV[2])
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', 100000, '*', 'kind', 'settled', 'id', id, 'step', known.step, 'pool',
      pool.name, 'replica', replica)
    replies[i] = { 1, cost, saved, 0 }
  end
end
if #ended == 0 then
  return replies
end

redis.call('ZREM', pool.lease, unpack(ended))
redis.call('HDEL', pool.lease_info, unpack(ended))
for replica, load in pairs(loads) do
  if load.changed then
    write_load(pool, replica, load.requests, load.tokens, load.cap, load.token_cap)
  end
end
redis.call('HSET', pool.load, '#service_us', string.format('%d', service_us))
for i = 1, buckets do
  if corrected[i] then
    write_bucket(KEYS[first_bucket + i - 1], arrivals[i], at_us)
  end
end
for i = 1, budgets do
  if books[i] and books[i].changed then
    write_budget(KEYS[first_budget + i - 1], false, books[i].spent, books[i].held, 0)
  end
end
redis.call('HINCRBY', KEYS[1], 'spent', string.format('%d', spent_sum))
redis.call('HINCRBY', KEYS[1], 'saved', string.format('%d', saved_sum))
redis.call('HINCRBY', KEYS[1], 'calls', #ended)
for tier, count in pairs(calls_of) do
  redis.call('HINCRBY', KEYS[1], 'calls:' .. tier, count)
end
return replies
