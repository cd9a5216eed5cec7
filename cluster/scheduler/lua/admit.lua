#!lua
-- Lease a slot on the least loaded live replica of the first candidate that has one.
--
-- KEYS  1 resv of the request, 2 fence, then per distinct pool: lease, lease_info, reps, load
-- ARGV  1 request id, 2 step, 3 tokens (estimate, prompt plus output), 4 lease ttl (ms), 5 spill (1 or 0),
--       6 a replica is dead after (ms), 7 resv ttl (ms), 8 expired leases to end per pool,
--       9 replicas to look at per candidate,
--       10 and 11 prices of the large tier, prompt and output (micro-USD per million tokens),
--       12 number of candidates, then four per candidate: its pool (1 = the first in KEYS), tier,
--       prompt price, output price; then the name of every pool in KEYS; then the replicas to leave out
-- Reply {1, candidate (0 = the first), replica, address, fence, lease expiry (ms)}
--       {0, 'capacity' | 'no_replica' | 'ended'}
--       {2, pool}: the step before has its lease in a pool that KEYS lack; call again with it
-- Time  TIME
-- A refusal writes nothing, except that expired leases have ended and dead replicas left reps: both hold
-- whoever notices them, so that no janitor has to be alive.

local id, step, tokens = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local ttl_ms, spill, dead_after_ms = tonumber(ARGV[4]), ARGV[5] == '1', tonumber(ARGV[6])
local look_at = tonumber(ARGV[9])
local candidates = tonumber(ARGV[12])
local now = now_ms()

local known = redis.call('HMGET', KEYS[1], 'state', 'step', 'pool', 'candidate', 'replica', 'address',
  'fence', 'expiry')
local known_step = tonumber(known[2])
if known[1] == 'settled' or (known_step and known_step > step) then
  return { 0, 'ended' }
end
if known_step == step then
  return { 1, tonumber(known[4]), known[5], known[6], tonumber(known[7]), tonumber(known[8]) }
end

local pools, own = {}, nil -- own: the pool in which the step before had its lease
local argument = 12 + 4 * candidates
for first = 3, #KEYS, 4 do
  local pool = pool_at(first)
  argument = argument + 1
  pool.name = ARGV[argument]
  pools[#pools + 1] = pool
  if pool.name == known[3] then
    own = pool
  end
end
if known[3] and not own then
  return { 2, known[3] }
end

local excluded, excludes = {}, 0
for i = argument + 1, #ARGV do
  if not excluded[ARGV[i]] then
    excluded[ARGV[i]] = true
    excludes = excludes + 1
  end
end

for _, pool in ipairs(pools) do
  end_expired_leases(pool, now, tonumber(ARGV[8]))
end
local own_lease = own and lease_of(own, id) -- nil also where it is not in its replica's load
if own_lease then
  local since = redis.call('HGET', own.load, own_lease.replica .. '|since')
  if not since or own_lease.fence <= tonumber(since) then
    own_lease = nil
  end
end

-- Excluded replicas must not take the places of those that could be chosen. The replica of the step before
-- is looked at wherever it stands, because the slot that this step gives back may be its only free one.
local function replicas_to_look_at(pool)
  local ids = redis.call('ZRANGE', pool.reps, 0, look_at + excludes - 1)
  if own_lease and pool == own then
    for _, replica in ipairs(ids) do
      if replica == own_lease.replica then
        return ids
      end
    end
    if redis.call('ZSCORE', pool.reps, own_lease.replica) then
      ids[#ids + 1] = own_lease.replica
    end
  end
  return ids
end

local function is_before(a, b)
  if a.tokens ~= b.tokens then
    return a.tokens < b.tokens
  end
  if a.requests ~= b.requests then
    return a.requests < b.requests
  end
  return a.replica < b.replica
end

-- Returns the best replica with a free slot or nil, and whether a live one is full.
local function choose(pool)
  while true do
    local ids = replicas_to_look_at(pool)
    if #ids == 0 then
      return nil, false
    end
    local fields = {}
    for _, replica in ipairs(ids) do
      fields[#fields + 1] = replica .. '|req'
      fields[#fields + 1] = replica .. '|tok'
      fields[#fields + 1] = replica .. '|cap'
      fields[#fields + 1] = replica .. '|hb'
    end
    local row = redis.call('HMGET', pool.load, unpack(fields))
    local best, full, dead = nil, false, false
    for i, replica in ipairs(ids) do
      local at = 4 * (i - 1)
      local heartbeat = tonumber(row[at + 4])
      if not heartbeat or now - heartbeat >= dead_after_ms then
        redis.call('ZREM', pool.reps, replica)
        dead = true
      elseif not excluded[replica] then
        local option = {
          replica = replica, requests = tonumber(row[at + 1]), tokens = tonumber(row[at + 2]),
          cap = tonumber(row[at + 3]),
        }
        if own_lease and pool == own and replica == own_lease.replica then
          option.requests = option.requests - 1
          option.tokens = option.tokens - own_lease.tokens
        end
        if option.requests >= option.cap then
          full = true
        elseif not best or is_before(option, best) then
          best = option
        end
      end
    end
    -- Dead ones may have hidden live ones; they are out of reps now, so this comes to an end.
    if best or not dead then
      return best, full
    end
  end
end

local any_full = false
for candidate = 0, candidates - 1 do
  local at = 13 + 4 * candidate
  local pool = pools[tonumber(ARGV[at])]
  local chosen, full = choose(pool)
  if chosen then
    if own then
      end_lease(own, id)
    end
    local address = redis.call('HGET', pool.load, chosen.replica .. '|addr')
    local fence = redis.call('INCR', KEYS[2])
    local expiry = now + ttl_ms
    change_load(pool, chosen.replica, chosen.cap, 1, tokens)
    redis.call('ZADD', pool.lease, expiry, id)
    redis.call('HSET', pool.lease_info, id, tokens .. '|' .. fence .. '|' .. chosen.replica)
    redis.call('HSET', KEYS[1], 'state', 'open', 'step', ARGV[2], 'pool', pool.name, 'tier', ARGV[at + 1],
      'candidate', candidate, 'replica', chosen.replica, 'address', address, 'fence', fence, 'expiry', expiry,
      'tokens', tokens, 'price_prompt', ARGV[at + 2], 'price_output', ARGV[at + 3],
      'large_price_prompt', ARGV[10], 'large_price_output', ARGV[11])
    redis.call('PEXPIRE', KEYS[1], ARGV[7])
    return { 1, candidate, chosen.replica, address, fence, expiry }
  end
  any_full = any_full or full
  if full and not spill then
    break
  end
end
return { 0, any_full and 'capacity' or 'no_replica' }
