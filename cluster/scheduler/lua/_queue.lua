-- A pool's queue: the tenants of a class take turns, each tenant's waiters stand in a line. Needs _pool.
-- line: `<class>|<length of tenant>|<tenant>|<number>|<virtual cost>|<request id>`, all with score 0, so in this order.
--   The first three name a tenant in its class; the length makes that prefix unlike any other, whatever the name.
-- q: such prefixes, of tenants with a waiter, by class * CLASS + the virtual time at which its first one would end.
-- q_info: request id -> ticket (JSON), all that a grant needs. q_wait: request id by the end of its wait, the earlier
-- of its deadline and its gateway's last sign of life plus the ticket TTL.
-- vt: `number` of the last waiter; per class its virtual `clock|…`, the sum of its tenants' weights `weight|…` and its
-- `pace|…`; per tenant `last|…`, up to when it was served, and `weight|…`.
-- Self-clocked fair queueing (Golestani 1994), charged when a slot is granted: a waiter that leaves unserved has cost
-- its tenant nothing. Money and rate were taken when the request began to wait, so a grant touches pool keys alone.

local CLASS = 1125899906842624 -- 2^50: three classes and their virtual times stay exact in a double
local LAST_CLASS = 2
local VIRTUAL = 1000 -- virtual time per token at weight 1
local PACE_MS, PACE_TURNS = 4000, 16 -- the window of a pace: for so many turns of the slots, but not shorter
local GRANTS_AT_ONCE = 16 -- per script: nobody else is served meanwhile; the next sweep goes on

local function ticket_of(pool, id)
  local text = redis.call('HGET', pool.q_info, id)
  return text and cjson.decode(text)
end

local function whose(class, tenant)
  return string.format('%d|%d|%s|', class, #tenant, tenant)
end

-- The bounds of what begins with a prefix that ends in '|', for BYLEX and ZLEXCOUNT.
local function beginning_with(prefix)
  return '[' .. prefix, '(' .. string.sub(prefix, 1, -2) .. '}'
end

-- A waiter of a tenant's line, or nil: its member, virtual cost and request id. 0 is the first.
local function waiter_at(pool, owner, place)
  local from, to = beginning_with(owner)
  local member = redis.call('ZRANGE', pool.line, from, to, 'BYLEX', 'LIMIT', place, 1)[1]
  if not member then
    return nil
  end
  local cost, id = string.match(member, '^%d+|(%d+)|(.*)$', #owner + 1)
  return { member = member, cost = tonumber(cost), id = id }
end

-- Give a tenant its turn by its first waiter, or take it out of the turns.
local function take_turn(pool, class, owner)
  local first = waiter_at(pool, owner, 0)
  if first then
    local last = tonumber(redis.call('HGET', pool.vt, 'last|' .. owner))
    redis.call('ZADD', pool.q, string.format('%d', class * CLASS + last + first.cost), owner)
  else
    redis.call('ZREM', pool.q, owner)
    redis.call('HINCRBY', pool.vt, 'weight|' .. class, 0 - redis.call('HGET', pool.vt, 'weight|' .. owner))
    redis.call('HDEL', pool.vt, 'weight|' .. owner)
  end
end

-- How many of a class are granted, in thousandths, in a window of time that slides: `current` since `start` (ms),
-- `before` in the window before that. Nil where nobody of the class has waited.
local function pace_of(pool, class, now_ms)
  local text = redis.call('HGET', pool.vt, 'pace|' .. class)
  if not text then
    return nil
  end
  local start, length, current, before = string.match(text, '^(%d+)|(%d+)|(%d+)|(%d+)$')
  local pace = { start = tonumber(start), length = tonumber(length), current = tonumber(current),
    before = tonumber(before) }
  local windows = math.floor((now_ms - pace.start) / pace.length)
  if windows > 0 then
    pace.before = windows == 1 and pace.current or 0
    pace.current = 0
    pace.start = pace.start + windows * pace.length
  end
  return pace
end

local function pace_text(start, length, current, before)
  return string.format('%d|%d|%d|%d', start, length, current, before)
end

-- A class begins to wait: as if it had had all slots so far, of which one comes free every `turn_us`. What its pace was
-- more than two windows ago tells nothing; nor does a time in which the pool slept (`anew`).
local function begin_pace(pool, class, turn_us, now_ms, anew)
  local start, length = string.match(redis.call('HGET', pool.vt, 'pace|' .. class) or '', '^(%d+)|(%d+)')
  if anew or not start or now_ms - start >= 2 * length then
    local window_ms = math.max(PACE_MS, math.floor(turn_us * PACE_TURNS / 1000))
    redis.call('HSET', pool.vt, 'pace|' .. class,
      pace_text(now_ms, window_ms, 0, math.floor(window_ms * 1000000 / turn_us)))
  end
end

-- Between two grants, in us. Two windows at most: what is not known is not for ever.
local function gap_us(pace, now_ms)
  local left_ms = pace.length - (now_ms - pace.start)
  local grants = pace.current + math.floor(pace.before * left_ms / pace.length)
  return math.floor(pace.length * 1000000 / math.max(500, grants))
end

-- Its place goes to the next of its tenant. No-op for one that has left the line before.
local function leave_line(pool, ticket)
  if redis.call('ZREM', pool.line, ticket.member) == 1 then
    take_turn(pool, ticket.class, whose(ticket.class, ticket.tenant))
  end
end

local function drop_ticket(pool, id, ticket)
  leave_line(pool, ticket)
  redis.call('HDEL', pool.q_info, id)
  redis.call('ZREM', pool.q_wait, id)
  if redis.call('EXISTS', pool.q) == 0 then
    redis.call('DEL', pool.vt) -- nobody is backlogged: who was served before no longer counts
  end
end

-- Returns the ticket, or false where the request does not wait.
local function leave_queue(pool, id)
  local ticket = ticket_of(pool, id)
  if ticket then
    drop_ticket(pool, id, ticket)
  end
  return ticket
end

-- How many wait in a class and the more urgent ones.
local function as_urgent(pool, class)
  return redis.call('ZLEXCOUNT', pool.line, '-', string.format('(%d', class + 1))
end

-- How many are served before a waiter with `own` of its tenant's before it: the more urgent ones, and of the other
-- tenants of its class as many as their weights let pass meanwhile.
local function ahead_of(pool, class, owner, weight, own)
  local from, to = beginning_with(owner)
  local more_urgent = class > 0 and as_urgent(pool, class - 1) or 0
  local others = as_urgent(pool, class) - more_urgent - redis.call('ZLEXCOUNT', pool.line, from, to)
  local weights = redis.call('HMGET', pool.vt, 'weight|' .. class, 'weight|' .. owner)
  local their_weight = (weights[1] or 0) - (weights[2] or 0)
  return more_urgent + own + math.min(others, math.ceil((own + 1) * their_weight / weight))
end

local function position_of(pool, ticket)
  local owner = whose(ticket.class, ticket.tenant)
  local up_to_number = string.sub(ticket.member, 1, #owner + 12)
  local own = redis.call('ZLEXCOUNT', pool.line, '[' .. owner, '(' .. up_to_number)
  return ahead_of(pool, ticket.class, owner, ticket.weight, own)
end

-- For who would be the last of its tenant: how many are served before it, and the wait in ms that follows: more
-- urgent ones by the slots, of which one comes free every `turn_us`; the own class by its pace of late, which knows of
-- urgent work that comes later. Nobody is kept out by that pace alone: the first of a class waits by the slots, and
-- so do all of a pool that sleeps, whose pace is none.
local function predicted_wait(pool, class, tenant, weight, turn_us, now_ms, asleep)
  local owner = whose(class, tenant)
  local from, to = beginning_with(owner)
  local more_urgent = class > 0 and as_urgent(pool, class - 1) or 0
  local ahead = ahead_of(pool, class, owner, weight, redis.call('ZLEXCOUNT', pool.line, from, to))
  local pace = not asleep and ahead > more_urgent and pace_of(pool, class, now_ms)
  local gap = pace and math.max(turn_us, gap_us(pace, now_ms)) or turn_us
  return ahead, math.ceil((more_urgent * turn_us + (ahead - more_urgent + 1) * gap) / 1000)
end

-- Adds the `member` to the ticket.
local function join_queue(pool, id, ticket, turn_us, now_ms, asleep)
  local owner = whose(ticket.class, ticket.tenant)
  local cost = math.ceil(math.max(1, ticket.tokens) * VIRTUAL / ticket.weight)
  local number = redis.call('HINCRBY', pool.vt, 'number', 1)
  ticket.member = string.format('%s%012d|%d|%s', owner, number, cost, id)
  redis.call('ZADD', pool.line, 0, ticket.member)
  if not redis.call('ZSCORE', pool.q, owner) then
    local times = redis.call('HMGET', pool.vt, 'clock|' .. ticket.class, 'last|' .. owner)
    local last = math.max(tonumber(times[1] or 0), tonumber(times[2] or 0))
    redis.call('HSET', pool.vt, 'last|' .. owner, string.format('%d', last), 'weight|' .. owner, ticket.weight)
    if redis.call('HINCRBY', pool.vt, 'weight|' .. ticket.class, ticket.weight) == ticket.weight then
      begin_pace(pool, ticket.class, turn_us, now_ms)
    end
    take_turn(pool, ticket.class, owner)
  end
  if asleep then
    begin_pace(pool, ticket.class, turn_us, now_ms, true)
  end
  redis.call('HSET', pool.q_info, id, cjson.encode(ticket))
  redis.call('ZADD', pool.q_wait, math.min(ticket.deadline, now_ms + ticket.ttl), id)
end

-- The next of a class, or nil: the first of the tenant whose turn it is. One whose wait is over leaves the line: it
-- never starts, and its gateway or `reap` gives back its money. `passed`: per tenant, how many to leave out.
local function next_of_class(pool, class, now_ms, passed)
  local turn = 0
  while true do
    local owner = redis.call('ZRANGE', pool.q, string.format('%d', class * CLASS),
      string.format('(%d', (class + 1) * CLASS), 'BYSCORE', 'LIMIT', turn, 1)[1]
    if not owner then
      return nil
    end
    local waiter = waiter_at(pool, owner, passed[owner] or 0)
    if not waiter then
      turn = turn + 1
    else
      local ticket = ticket_of(pool, waiter.id)
      if tonumber(redis.call('ZSCORE', pool.q_wait, waiter.id)) > now_ms then
        return { id = waiter.id, ticket = ticket, owner = owner, cost = waiter.cost }
      end
      leave_line(pool, ticket)
      turn = 0
    end
  end
end

-- Who is served next, or nil. Classes are strict, but a waiter rises by one class for every `ticket.ageing` ms; among
-- equals the longest wait goes first.
local function next_waiter(pool, now_ms, passed)
  local best = nil
  for class = 0, LAST_CLASS do
    local waiter = next_of_class(pool, class, now_ms, passed)
    if waiter then
      local since = waiter.ticket.since
      waiter.level = math.max(0, class - math.floor((now_ms - since) / waiter.ticket.ageing))
      if not best or waiter.level < best.level or (waiter.level == best.level and since < best.ticket.since) then
        best = waiter
      end
    end
  end
  return best
end

-- A replica for a waiter, by what its ticket knew of adapters when the wait began; and whether a live one is there.
local function replica_for(pool, ticket, freed, dead_at_ms)
  local excluded, holds, also = {}, {}, { unpack(freed) }
  for _, replica in ipairs(ticket.excluded) do
    excluded[replica] = true
  end
  for _, replica in ipairs(ticket.holders) do
    holds[replica] = true
    also[#also + 1] = replica
  end
  if ticket.affine ~= '' then
    also[#also + 1] = ticket.affine
  end
  local terms = { base = 0, per_token = ticket.per_token, cold = ticket.cold, holds = holds,
    affine = ticket.affine, credit = ticket.credit }
  return best_replica(pool, ticket.tokens, terms, excluded, ticket.look_at + #ticket.excluded, also, dead_at_ms)
end

local function grant(pool, waiter, chosen, fence, now_ms)
  local id, ticket = waiter.id, waiter.ticket
  local expiry_ms = now_ms + ticket.lease_ttl
  begin_lease(pool, id, { tokens = ticket.tokens, fence = fence, candidate = ticket.candidate, granted_ms = now_ms,
    dispatched = ticket.sent, address = chosen.address, replica = chosen.replica }, expiry_ms, chosen)
  local finish = redis.call('HINCRBY', pool.vt, 'last|' .. waiter.owner, waiter.cost)
  local clock = math.max(finish, tonumber(redis.call('HGET', pool.vt, 'clock|' .. ticket.class) or 0))
  local pace = pace_of(pool, ticket.class, now_ms)
  redis.call('HSET', pool.vt, 'clock|' .. ticket.class, string.format('%d', clock), 'pace|' .. ticket.class,
    pace_text(pace.start, pace.length, pace.current + 1000, pace.before))
  drop_ticket(pool, id, ticket)
  redis.call('PUBLISH', ticket.channel, table.concat({ id, ticket.step, ticket.candidate,
    string.format('%d', fence), expiry_ms, chosen.address, chosen.replica }, '|'))
end

-- Give free slots to waiters, in order; stops at the first that fits nowhere, so that large calls are not
-- overtaken for ever. One whose replicas are all gone or left out stops nobody. Each grant is published to its
-- gateway. Returns how many were granted.
local function grant_waiters(pool, fence_key, freed, now_ms, dead_after_ms)
  if redis.call('EXISTS', pool.q) == 0 then
    return 0
  end
  local granted, passed, fence = 0, {}, nil
  for _ = 1, GRANTS_AT_ONCE do
    local waiter = next_waiter(pool, now_ms, passed)
    if not waiter then
      break
    end
    local chosen, live = replica_for(pool, waiter.ticket, freed, now_ms - dead_after_ms)
    if chosen then
      fence = next_fence(fence or redis.call('GET', fence_key), now_ms)
      grant(pool, waiter, chosen, fence, now_ms)
      granted = granted + 1
    elseif live then
      break
    else
      passed[waiter.owner] = (passed[waiter.owner] or 0) + 1
    end
  end
  if fence then
    write_fence(fence_key, fence)
  end
  return granted
end
