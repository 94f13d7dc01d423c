#!lua flags=allow-oom
-- KEYS: meta. ARGV: incarnation, reader, what is damaged or "" for nothing.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'reader')
if meta[1] ~= ARGV[1] then return redis.error_reply('LEVADAMISSING') end
if meta[2] ~= ARGV[2] then return redis.error_reply('LEVADAFENCED') end
if ARGV[3] == '' then redis.call('HDEL', KEYS[1], 'damage') else redis.call('HSET', KEYS[1], 'damage', ARGV[3]) end
return 1
