#!lua flags=allow-oom
-- Uses _pool _queue _money
-- End one request whose lease or wait has run out: its gateway died, or forgot it. Called for what `sweep` found.
--
-- KEYS  1 resv of the request, 2 fence, 3 stats of the day, 4 ev, then one per rate bucket, one per budget, then
--       the nine of its pool (_pool)
-- ARGV  1 request id, 2 pool, 3 resv ttl (ms), 4 a replica is dead after (ms), 5 charge lost calls (1 or 0),
--       6 rate buckets R, 7 budgets B, then per bucket what it was charged (us)
-- Reply {1, charge (micro-USD)}: ended now; {0}: alive, or ended before
-- Time  TIME
-- A call that had been sent to an engine, in whichever of its steps, is charged its hold where that is the policy,
-- because the model may have run; one that had not is refunded, rate included. `settle` corrects the charge should its gateway come back.

local id = ARGV[1]
local buckets, budgets = tonumber(ARGV[6]), tonumber(ARGV[7])
local first_budget = 5 + buckets
local pool = pool_at(first_budget + budgets, ARGV[2])
local at_us = now_us()
local now_ms = to_ms(at_us)

local expiry = redis.call('ZSCORE', pool.lease, id)
local wait = redis.call('ZSCORE', pool.q_wait, id)
if tonumber(expiry or 0) > now_ms or tonumber(wait or 0) > now_ms or not (expiry or wait) then
  return { 0 }
end

local lease = end_lease(pool, id)
local sent = lease and lease.dispatched
if not lease then
  sent = (leave_queue(pool, id) or {}).sent
end
local known = reservation(redis.call('GET', KEYS[1]))
local charge = 0
if known and not known.over and known.pool == pool.name then
  if sent and ARGV[5] == '1' then
    charge = known.hold
  end
  if not sent then
    for i = 1, buckets do
      correct_bucket(KEYS[4 + i], tonumber(ARGV[7 + i]), at_us)
    end
  end
  change_budgets(first_budget, first_budget + budgets - 1, charge, 0 - known.hold)
  redis.call('HINCRBY', KEYS[3], 'spent', string.format('%d', charge))
  redis.call('HINCRBY', KEYS[3], 'lost', 1)
  write_over(KEYS[1], 'expired', known.step, charge, known.hold, ARGV[3])
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', 100000, '*', 'kind', 'expired', 'id', id, 'step', known.step, 'pool',
    pool.name, 'replica', lease and lease.replica or '')
end
grant_waiters(pool, KEYS[2], lease and { lease.replica } or {}, now_ms, tonumber(ARGV[4]))
return { 1, charge }
