#!lua flags=allow-oom
-- KEYS: place. ARGV: "create" or "attach", tag and incarnation if it is created. Returns tag and incarnation.
local place = redis.call('HMGET', KEYS[1], 'tag', 'incarnation')
if place[2] then return place end
if ARGV[1] ~= 'create' then return redis.error_reply('LEVADANONE') end
redis.call('HSET', KEYS[1], 'tag', ARGV[2], 'incarnation', ARGV[3], 'revision', 0)
return {ARGV[2], ARGV[3]}
