#!lua flags=allow-oom
-- Uses _pool _queue _money
-- End a call: free its slot, replace its hold by what it cost, correct its rate buckets, give the slot on. Once.
--
-- KEYS  1 resv of the request, 2 fence, 3 stats of the day, 4 ev, then one per rate bucket, one per budget, then
--       nine per distinct pool (_pool)
-- ARGV  1 request id, 2 cost (micro-USD), 3 saved (micro-USD, may be negative), 4 tier, 5 resv ttl (ms),
--       6 a replica is dead after (ms), 7 ended as: settled or cancelled, 8 rate buckets R, 9 budgets B,
--       10 pools P, then per bucket what to give back (us, negative: charge more), then per pool its name
-- Reply {1, cost, saved, grants}: ended now; {0, cost, saved, 0}: ended before
--       {2, pool}: the request is in a pool that KEYS lack; call again with it
--       {3}: no such request
-- Time  TIME
-- allow-oom: a server that is out of memory must still free slots and count money.
-- Nothing above the hold is charged; where usage asks for more, the counter `overrun` says so.

local id, as = ARGV[1], ARGV[7]
local cost, saved = tonumber(ARGV[2]), tonumber(ARGV[3])
if as == 'cancelled' then
  cost, saved = 0, 0
end
local dead_after_ms = tonumber(ARGV[6])
local buckets, budgets, pool_count = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local first_bucket, first_budget = 5, 5 + buckets
local first_pool_key = first_budget + budgets

local known = reservation(redis.call('GET', KEYS[1]))
if not known then
  return { 3 }
end
if known.over and (known.state ~= 'expired' or as == 'cancelled') then
  return { 0, known.cost, known.saved, 0 }
end

local at_us = now_us()
local now_ms = to_ms(at_us)

local function count(spent_by, saved_by, calls_by)
  redis.call('HINCRBY', KEYS[3], 'spent', string.format('%d', spent_by))
  redis.call('HINCRBY', KEYS[3], 'saved', string.format('%d', saved_by))
  if calls_by > 0 then
    redis.call('HINCRBY', KEYS[3], 'calls', calls_by)
    redis.call('HINCRBY', KEYS[3], 'calls:' .. ARGV[4], calls_by)
  end
end

local pool = nil
for i = 1, pool_count do
  if ARGV[10 + buckets + i] == known.pool then
    pool = pool_at(first_pool_key + POOL_KEYS * (i - 1), known.pool)
  end
end
if not pool and not known.over then
  return { 2, known.pool }
end

if budgets > 0 and cost > known.hold then
  redis.call('HINCRBY', KEYS[3], 'overrun', string.format('%d', cost - known.hold))
  saved = saved + cost - known.hold
  cost = known.hold
end

if known.over then
  -- `reap` ended it as lost, and here is its gateway after all, with what it really cost. Where `reap` had given
  -- the hold back, others may have taken it: only so can a budget be overspent.
  change_budgets(first_budget, first_budget + budgets - 1, cost - known.cost, 0)
  count(cost - known.cost, saved, 1)
  write_over(KEYS[1], 'settled', known.step, cost, saved, ARGV[5])
  return { 1, cost, saved, 0 }
end

local freed = {}
local lease = end_lease(pool, id)
if lease then
  freed[1] = lease.replica
  learn_service_time(pool, lease, now_ms)
else
  leave_queue(pool, id)
end
for i = 1, buckets do
  correct_bucket(KEYS[first_bucket + i - 1], tonumber(ARGV[10 + i]), at_us)
end
change_budgets(first_budget, first_budget + budgets - 1, cost, 0 - known.hold)
if as == 'settled' then
  count(cost, saved, 1)
end
write_over(KEYS[1], as, known.step, cost, saved, ARGV[5])
redis.call('XADD', KEYS[4], 'MAXLEN', '~', 100000, '*', 'kind', as, 'id', id, 'step', known.step, 'pool',
  known.pool, 'replica', freed[1] or '')
return { 1, cost, saved, grant_waiters(pool, KEYS[2], freed, now_ms, dead_after_ms) }
