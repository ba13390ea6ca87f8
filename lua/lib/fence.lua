-- Whether a zone's rounds are still done under this fence; an empty one is that of a caller who needs none.
local function is_held(key, fence)
  return fence == '' or redis.call('HGET', key, 'fence') == fence
end
