-- A pool's queue. Needs _pool.
-- q: request id by class * CLASS + virtual finish time. q_info: request id -> ticket (JSON), all that a grant
-- needs. q_wait: request id by the end of its wait, the earlier of its deadline and its gateway's last sign of
-- life plus the ticket TTL. vt: virtual clock (`clock|<class>`), last finish time (`last|<class>|<tenant>`).
-- Money and rate were taken when the request began to wait, so a grant touches pool keys alone.

local CLASS = 1125899906842624 -- 2^50: three classes and their virtual times stay exact in a double
local LAST_CLASS = 2
local VIRTUAL = 1000 -- virtual time per token at weight 1
local GRANTS_AT_ONCE = 16 -- per script: nobody else is served meanwhile; the next sweep goes on

local function ticket_of(pool, id)
  local text = redis.call('HGET', pool.q_info, id)
  return text and cjson.decode(text)
end

local function leave_queue(pool, id)
  redis.call('ZREM', pool.q, id)
  redis.call('HDEL', pool.q_info, id)
  redis.call('ZREM', pool.q_wait, id)
  if redis.call('EXISTS', pool.q) == 0 then
    redis.call('DEL', pool.vt) -- nobody is backlogged: who was served before no longer counts
  end
end

-- Self-clocked fair queueing (Golestani 1994): the finish time of a ticket, in its class.
local function finish_time(pool, class, tenant, weight, tokens)
  local row = redis.call('HMGET', pool.vt, 'clock|' .. class, 'last|' .. class .. '|' .. tenant)
  local start = math.max(tonumber(row[1] or 0), tonumber(row[2] or 0))
  return start + math.ceil(math.max(1, tokens) * VIRTUAL / weight)
end

-- The wait, in ms, that follows from how many are served before a ticket of this class and finish time.
local function predicted_wait(pool, class, finish, slots, service_us)
  local ahead = redis.call('ZCOUNT', pool.q, '-inf', string.format('(%d', class * CLASS + finish))
  service_us = tonumber(redis.call('HGET', pool.load, '#service_us') or service_us)
  return math.ceil((ahead + 1) * service_us / (1000 * math.max(1, slots)))
end

local function join_queue(pool, id, ticket, finish, now_ms)
  redis.call('HSET', pool.vt, 'last|' .. ticket.class .. '|' .. ticket.tenant, string.format('%d', finish))
  redis.call('ZADD', pool.q, string.format('%d', ticket.class * CLASS + finish), id)
  redis.call('HSET', pool.q_info, id, cjson.encode(ticket))
  redis.call('ZADD', pool.q_wait, math.min(ticket.deadline, now_ms + ticket.ttl), id)
end

-- The waiter that is served next, or nil. Classes are strict, but a waiter rises by one class for every
-- `ticket.ageing` ms; among equals the longest wait goes first. One whose wait is over leaves the order: it
-- never starts, and its gateway or `reap` gives back its money. `passed`: per class, how many to leave out.
local function next_waiter(pool, now_ms, passed)
  local best = nil
  for class = 0, LAST_CLASS do
    while true do
      local id = redis.call('ZRANGE', pool.q, string.format('%d', class * CLASS),
        string.format('(%d', (class + 1) * CLASS), 'BYSCORE', 'LIMIT', passed[class] or 0, 1)[1]
      if not id then
        break
      end
      if tonumber(redis.call('ZSCORE', pool.q_wait, id)) > now_ms then
        local ticket = ticket_of(pool, id)
        local level = math.max(0, class - math.floor((now_ms - ticket.since) / ticket.ageing))
        if not best or level < best.level or (level == best.level and ticket.since < best.ticket.since) then
          best = { id = id, ticket = ticket, level = level }
        end
        break
      end
      redis.call('ZREM', pool.q, id)
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
  local finish = redis.call('ZSCORE', pool.q, id) - ticket.class * CLASS
  redis.call('HSET', pool.vt, 'clock|' .. ticket.class, string.format('%d', finish))
  leave_queue(pool, id)
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
      local class = waiter.ticket.class
      passed[class] = (passed[class] or 0) + 1
    end
  end
  if fence then
    write_fence(fence_key, fence)
  end
  return granted
end
