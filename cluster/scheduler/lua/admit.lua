#!lua
-- Uses _pool _queue _money
-- Admit a call, let it wait, or refuse it: idempotency, rate limits, budget hold, choice of the replica, lease.
--
-- KEYS  1 resv of the request, 2 fence, 3 epoch, then one per rate bucket, one per budget, then stats of the
--       day, ev, then nine per distinct pool (_pool), then one adp per candidate with an adapter
-- ARGV  1 request id, 2 step, 3 tokens (estimate, prompt plus output), 4 lease ttl (ms), 5 resv ttl (ms),
--       6 a replica is dead after (ms), 7 replicas to look at per candidate, 8 spill (1 or 0),
--       9 class (0 most urgent), 10 tenant, 11 weight, 12 channel of its gateway, 13 hold (micro-USD), 14 note,
--       15 deadline (ms from now), 16 longest queue (requests of this class and
--       more urgent ones; -1: may not wait), 17 longest predicted wait (ms),
--       18 ticket ttl (ms), 19 ageing (ms per class), 20 checked (0; 1: budgets must be exact; or the id of
--       the epoch in which they are known to be),
--       21 rate buckets R, 22 budgets B, 23 candidates C, 24 pools P, then
--       per bucket: name, increment (us), burst (us); per budget: name, limit (micro-USD), ttl (ms);
--       per candidate: pool (1 = the first), tier, base, per token, cold (nano-USD), its adp (1 = the first,
--       0 none), affine replica or '', credit (nano-USD), service time to assume (us), slots per replica,
--       wake (ms until the first replica of a pool that sleeps; 0: it is passed over);
--       per pool its name; then the replicas to leave out
-- Reply {1, candidate (0 = the first), replica, address, fence, lease expiry (ms)}
--       {4, candidate, position (how many are served before), predicted wait (ms)}: waits
--       {0, reason, retry after (ms; 0: never), detail}: refused
--       {2, pool}: the step before is in a pool that KEYS lack; call again with it
-- Time  TIME
-- A refusal writes nothing but a counter and the absence of dead replicas and of waits that are over. The lease of
-- the step before ends with a grant or when the new step waits; until then its slot counts as free for this request.

local id, step, tokens = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local dead_after_ms, look_at, spill = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8] == '1'
local class = tonumber(ARGV[9])
local buckets, budgets, candidates, pool_count =
  tonumber(ARGV[21]), tonumber(ARGV[22]), tonumber(ARGV[23]), tonumber(ARGV[24])
local first_bucket_arg = 25
local first_budget_arg = first_bucket_arg + 3 * buckets
local first_candidate_arg = first_budget_arg + 3 * budgets
local first_pool_arg = first_candidate_arg + 11 * candidates
local first_excluded_arg = first_pool_arg + pool_count
local stats, ev = KEYS[4 + buckets + budgets], KEYS[5 + buckets + budgets]
local first_pool_key = 6 + buckets + budgets
local first_adp_key = first_pool_key + POOL_KEYS * pool_count

local at_us = now_us()
local now_ms = to_ms(at_us)
local found = redis.call('MGET', unpack(KEYS, 1, 3 + buckets + budgets))

local pools = {}
for i = 1, pool_count do
  pools[i] = pool_at(first_pool_key + POOL_KEYS * (i - 1), ARGV[first_pool_arg + i - 1])
end

local own_lease, own_pool, own_expiry = nil, nil, nil

local function event(kind, pool, replica)
  redis.call('XADD', ev, 'MAXLEN', '~', 100000, '*', 'kind', kind, 'id', id, 'step', step, 'pool', pool,
    'replica', replica, 'tenant', ARGV[10], 'class', class)
end

local function refuse(reason, retry_after_ms, detail)
  if own_lease then
    put_lease_back(own_pool, id, own_lease, own_expiry)
  end
  redis.call('HINCRBY', stats, 'refused:' .. reason, 1)
  return { 0, reason, math.ceil(retry_after_ms), detail or '' }
end

-- 1. The same request before.

local known = reservation(found[1])
if known then
  if known.over or known.step > step then
    return refuse('ended', 0)
  end
  for _, pool in ipairs(pools) do
    if pool.name == known.pool then
      own_pool = pool
    end
  end
  if not own_pool then
    return { 2, known.pool }
  end
  if known.step == step then
    local lease = lease_of(own_pool, id)
    if lease then
      return { 1, lease.candidate, lease.replica, lease.address, lease.fence,
        tonumber(redis.call('ZSCORE', own_pool.lease, id)) }
    end
    local ticket = ticket_of(own_pool, id)
    if ticket then
      return { 4, ticket.candidate, position_of(own_pool, ticket), 0 }
    end
    return refuse('ended', 0)
  end
end

-- 2. Rate limits and budgets: a request pays once, whatever steps it takes.

local hold = known and known.hold or tonumber(ARGV[13])
local note = known and known.note or ARGV[14]
local arrival = {}
if not known then
  for i = 1, buckets do
    local arg = first_bucket_arg + 3 * (i - 1)
    local increment, burst = tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2])
    if increment > burst then
      return refuse('too_large', 0, ARGV[arg])
    end
    arrival[i] = math.max(tonumber(found[3 + i] or 0), at_us) + increment
    if arrival[i] - at_us > burst then
      return refuse('rate', (arrival[i] - at_us - burst) / 1000, ARGV[arg])
    end
  end
  for i = 1, budgets do
    local arg = first_budget_arg + 3 * (i - 1)
    local spent, held = parse_budget(found[3 + buckets + i])
    if spent + held + hold > tonumber(ARGV[arg + 1]) then
      return refuse('budget', 0, ARGV[arg])
    end
  end
  -- Data loss: what was spent is not known here until it has been rebuilt from the ledger.
  local epoch_id = string.match(found[3] or '', '^open|(%d+)$')
  if ARGV[20] ~= '0' and (not epoch_id or (ARGV[20] ~= '1' and ARGV[20] ~= epoch_id)) then
    return refuse('rebuilding', 1000)
  end
end

-- 3. A place: the cheapest free replica of the first tier that lives (of all candidates, with spill). A pool that
-- sleeps lives for those who can wait until it is awake.

local excluded, excludes = {}, 0
for i = first_excluded_arg, #ARGV do
  if not excluded[ARGV[i]] then
    excluded[ARGV[i]] = true
    excludes = excludes + 1
  end
end

if own_pool then
  own_expiry = redis.call('ZSCORE', own_pool.lease, id)
  own_lease = end_lease(own_pool, id)
end

local function candidate_at(number)
  local arg = first_candidate_arg + 11 * (number - 1)
  local adp = tonumber(ARGV[arg + 5])
  return { number = number, pool = pools[tonumber(ARGV[arg])], tier = ARGV[arg + 1],
    service_us = tonumber(ARGV[arg + 8]), slots = tonumber(ARGV[arg + 9]), wake_ms = tonumber(ARGV[arg + 10]),
    terms = { base = tonumber(ARGV[arg + 2]), per_token = tonumber(ARGV[arg + 3]),
      cold = adp > 0 and tonumber(ARGV[arg + 4]) or 0, adp = adp > 0 and KEYS[first_adp_key + adp - 1] or nil,
      affine = ARGV[arg + 6], credit = tonumber(ARGV[arg + 7]) } }
end

local function named_replicas(terms)
  local also = terms.adp and redis.call('ZRANGE', terms.adp, 0, look_at + excludes - 1) or {}
  if terms.affine ~= '' then
    also[#also + 1] = terms.affine
  end
  return also
end

local function somebody_waits(pool)
  return redis.call('EXISTS', pool.q) == 1 and next_waiter(pool, now_ms, {}) ~= nil
end

local longest_queue, longest_wait_ms, deadline_ms = tonumber(ARGV[16]), tonumber(ARGV[17]), tonumber(ARGV[15])
local patience_ms = longest_queue < 0 and 0 or math.min(longest_wait_ms, deadline_ms)
local tenant, weight = ARGV[10], tonumber(ARGV[11])

-- What waiting with a candidate would be like.
local function promise(candidate)
  local turn_us = turn_of(candidate.pool, candidate.slots, candidate.service_us)
  local ahead, wait_ms = predicted_wait(candidate.pool, class, tenant, weight, turn_us, now_ms, candidate.asleep)
  return { candidate = candidate, turn_us = turn_us, ahead = ahead,
    wait_ms = wait_ms + (candidate.asleep and candidate.wake_ms or 0) }
end

-- Who cannot wait until it is awake still says that the pool is asked for, or it would sleep on.
local function can_be_waited_for(candidate)
  if promise(candidate).wait_ms <= patience_ms then
    return true
  end
  redis.call('HINCRBY', candidate.pool.load, '#asked', 1)
  return false
end

local best, best_candidate, living, live_tier = nil, nil, {}, nil
for number = 1, candidates do
  local candidate = candidate_at(number)
  if live_tier and candidate.tier ~= live_tier and not spill then
    break
  end
  candidate.also = named_replicas(candidate.terms)
  local chosen, live = best_replica(candidate.pool, tokens, candidate.terms, excluded, look_at + excludes,
    candidate.also, now_ms - dead_after_ms)
  candidate.asleep = not live and candidate.wake_ms > 0 and redis.call('EXISTS', candidate.pool.reps) == 0
  if live or (candidate.asleep and can_be_waited_for(candidate)) then
    live_tier = candidate.tier
    living[#living + 1] = candidate
  end
  -- Where others wait, nobody goes past them: this call queues, and the order says who is next.
  if chosen and (not best or chosen.cost < best.cost or
    (chosen.cost == best.cost and chosen.tokens < best.tokens)) and not somebody_waits(candidate.pool) then
    best, best_candidate = chosen, candidate
  end
end
if #living == 0 then
  return refuse('no_replica', dead_after_ms)
end

local function take_money()
  if known then
    return
  end
  for i = 1, buckets do
    write_bucket(KEYS[3 + i], arrival[i], at_us)
  end
  for i = 1, budgets do
    local text = found[3 + buckets + i]
    local spent, held = parse_budget(text)
    write_budget(KEYS[3 + buckets + i], not text, spent, held + hold,
      tonumber(ARGV[first_budget_arg + 3 * (i - 1) + 2]))
  end
end

-- The step before is over. True: an engine may have run it, so this is no call that never ran.
local function end_step_before()
  if own_lease then
    learn_service_time(own_pool, own_lease, now_ms)
    return own_lease.dispatched
  elseif own_pool then
    local ticket = leave_queue(own_pool, id)
    return ticket and ticket.sent or false
  end
  return false
end

-- What the step before gave up goes to the waiters there.
local function pass_on(pool)
  grant_waiters(pool, KEYS[2], own_lease and { own_lease.replica } or {}, now_ms, dead_after_ms)
end

local lease_ttl_ms = tonumber(ARGV[4])
if best then
  local pool, fence = best_candidate.pool, next_fence(found[2], now_ms)
  local sent = end_step_before()
  take_money()
  write_fence(KEYS[2], fence)
  begin_lease(pool, id, { tokens = tokens, fence = fence, candidate = best_candidate.number - 1,
    granted_ms = now_ms, dispatched = sent, address = best.address, replica = best.replica },
    now_ms + lease_ttl_ms, best)
  if best_candidate.terms.adp then
    redis.call('ZADD', best_candidate.terms.adp, 'XX', best.tokens + tokens, best.replica)
  end
  write_open(KEYS[1], 'open', step, pool.name, hold, note, ARGV[5])
  event(step == 0 and 'admitted' or 'escalated', pool.name, best.replica)
  if own_pool and own_pool ~= pool then
    pass_on(own_pool)
  end
  return { 1, best_candidate.number - 1, best.replica, best.address, fence, now_ms + lease_ttl_ms }
end

-- 4. Wait, in the pool that promises the shortest wait.

local place = nil
for _, candidate in ipairs(living) do
  local one = promise(candidate)
  if not place or one.wait_ms < place.wait_ms then
    place = one
  end
end
if longest_queue < 0 then
  return refuse('capacity', place.wait_ms)
end
local pool = place.candidate.pool
-- Less urgent waiters do not count: they would keep interactive calls out.
if as_urgent(pool, class) >= longest_queue then
  return refuse('queue_full', place.wait_ms)
end
if place.wait_ms > patience_ms then
  return refuse('wait', place.wait_ms - patience_ms)
end
local sent = end_step_before()
take_money()
local holding = {}
if place.candidate.terms.adp then
  holding = redis.call('ZRANGE', place.candidate.terms.adp, 0, look_at - 1)
end
local leave_out = {}
for replica in pairs(excluded) do
  leave_out[#leave_out + 1] = replica
end
local terms = place.candidate.terms
join_queue(pool, id, { step = step, candidate = place.candidate.number - 1, class = class, tenant = tenant,
  weight = weight, tokens = tokens, sent = sent, since = now_ms,
  -- A pool may not wake at all: then nobody waits for longer than was foreseen to be bearable.
  deadline = now_ms + (place.candidate.asleep and patience_ms or deadline_ms), ttl = tonumber(ARGV[18]),
  ageing = math.max(1, tonumber(ARGV[19])), lease_ttl = lease_ttl_ms, channel = ARGV[12],
  excluded = leave_out, holders = holding, affine = terms.affine,
  per_token = terms.per_token, cold = terms.cold, credit = terms.credit, look_at = look_at }, place.turn_us, now_ms,
  place.candidate.asleep)
write_open(KEYS[1], 'waiting', step, pool.name, hold, note, ARGV[5])
event('waiting', pool.name, '')
-- A slot may be free: one that this request gave up, or that nobody ahead of it fits.
if own_pool and own_pool ~= pool then
  pass_on(own_pool)
end
pass_on(pool)
local lease = lease_of(pool, id)
if lease then
  return { 1, lease.candidate, lease.replica, lease.address, lease.fence, now_ms + lease_ttl_ms }
end
return { 4, place.candidate.number - 1, place.ahead, place.wait_ms }
