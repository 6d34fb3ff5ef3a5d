"""What Redis does with tokens, in Lua: each script is one step for all front-ends.

The keys are listed in `vnctoken.tokens.redis`; the first argument of all scripts is the namespace. The time is Redis'
own, and only Redis 5 and newer let scripts write after they asked for it. What ISSUE writes first is what a Redis short
of memory refuses; then nothing is written.
"""

from __future__ import annotations

_COMMON = """
local ns = ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function record_of(sha) return ns .. '.token/' .. sha end
local function index_of_vm(vm) return ns .. '.vm/' .. vm end
local function index_of_target(host, port) return ns .. '.target/' .. host .. ':' .. port end

-- Drop from an index what has expired, and let it live as long as the last of its members.
local function settle(index)
    redis.call('ZREMRANGEBYSCORE', index, '-inf', string.format('%.0f', now))
    local last = redis.call('ZRANGE', index, -1, -1, 'WITHSCORES')[2]
    if last == 'inf' then
        redis.call('PERSIST', index)
    elseif last then
        redis.call('PEXPIREAT', index, last)
    end
    return last
end

local function settle_all(vm, target)
    settle(target)
    local last = settle(index_of_vm(vm))
    if last then
        redis.call('ZADD', ns .. '.vms', last, vm)
    else
        redis.call('ZREM', ns .. '.vms', vm)
    end
    settle(ns .. '.vms')
end

-- The tokens in an index; the record of one may have been evicted.
local function live(index)
    local found = {}
    for _, sha in ipairs(redis.call('ZRANGE', index, 0, -1)) do
        if redis.call('EXISTS', record_of(sha)) == 1 then
            table.insert(found, sha)
        else
            redis.call('ZREM', index, sha)
        end
    end
    return found
end

-- The tokens of a VM in the order in which they were issued, which also holds if the clock was set back.
local function live_in_order(vm)
    local order, found = {}, live(index_of_vm(vm))
    for _, sha in ipairs(found) do
        order[sha] = tonumber(redis.call('HGET', record_of(sha), 'order'))
    end
    table.sort(found, function(one, other) return order[one] < order[other] end)
    return found, order[found[#found]]
end

local function forget(vm, sha)
    local host, port, token = unpack(redis.call('HMGET', record_of(sha), 'host', 'port', 'token'))
    redis.call('DEL', record_of(sha))
    if token then
        redis.call('DEL', ns .. ':' .. token)
    end
    redis.call('ZREM', index_of_vm(vm), sha)
    redis.call('ZREM', index_of_target(host, port), sha)
    settle_all(vm, index_of_target(host, port))
end
"""

ISSUE = f"""{_COMMON}
local sha, token, ttl, keep = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local record, reader = record_of(sha), ns .. ':' .. token
redis.call('HSET', record, unpack(ARGV, 6))
local vm, host, port = unpack(redis.call('HMGET', record, 'vm', 'host', 'port'))
local target = index_of_target(host, port)
redis.call('ZREM', index_of_vm(vm), sha)
local others, last = live_in_order(vm)
local order = time[1] * 1000000 + time[2]
if last and last >= order then
    order = last + 1
end
redis.call('HSET', record, 'order', string.format('%.0f', order))
if token ~= '' then
    redis.call('HSET', record, 'token', token)
    redis.call('SET', reader, host .. ':' .. port)
end
local expiry = 'inf'
if ttl > 0 then
    expiry = string.format('%.0f', now + ttl * 1000)
    redis.call('PEXPIREAT', record, expiry)
    redis.call('PEXPIREAT', reader, expiry)
end
redis.call('ZADD', index_of_vm(vm), expiry, sha)
redis.call('ZADD', target, expiry, sha)
settle_all(vm, target)
for i = 1, #others + 1 - keep do
    forget(vm, others[i])
end
"""

CHECK = """
local probe = ARGV[1] .. '.check'
redis.call('HSET', probe, 'vm', 0)
redis.call('DEL', probe)
"""

LIVE = f"""{_COMMON}
local answer = {{}}
for _, sha in ipairs((live_in_order(ARGV[2]))) do
    table.insert(answer, sha)
    for _, value in ipairs(redis.call('HMGET', record_of(sha), unpack(ARGV, 3))) do
        table.insert(answer, value)
    end
end
return answer
"""

REVOKE = f"""{_COMMON}
local wanted, count = {{}}, 0
for i = 4, #ARGV do
    wanted[ARGV[i]] = true
end
for _, sha in ipairs(live(index_of_vm(ARGV[2]))) do
    if ARGV[3] == 'all' or wanted[sha] then
        forget(ARGV[2], sha)
        count = count + 1
    end
end
return count
"""

USE = f"""{_COMMON}
local record, window = record_of(ARGV[2]), tonumber(ARGV[3])
local used, single_use = unpack(redis.call('HMGET', record, 'used', 'single_use'))
local seconds = time[1] + time[2] / 1000000
if not used then
    return false
elseif tonumber(used) == 0 then
    redis.call('HSET', record, 'used', string.format('%.6f', seconds))
elseif single_use == '1' and math.abs(seconds - used) >= window then
    return false
end
return redis.call('HMGET', record, unpack(ARGV, 4))
"""

HOLDERS = f"""{_COMMON}
local answer = {{}}
for _, sha in ipairs(live(index_of_target(ARGV[2], ARGV[3]))) do
    table.insert(answer, redis.call('HGET', record_of(sha), 'vm'))
end
return answer
"""

TARGETS = f"""{_COMMON}
local answer = {{}}
for i = 2, #ARGV do
    for _, sha in ipairs(live(index_of_vm(ARGV[i]))) do
        for _, value in ipairs(redis.call('HMGET', record_of(sha), 'vm', 'host', 'port')) do
            table.insert(answer, value)
        end
    end
end
return answer
"""
